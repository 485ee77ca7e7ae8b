import org.springframework.ai.chat.client.ChatClient;
import org.springframework.ai.openai.OpenAiChatModel;
import org.springframework.ai.openai.OpenAiChatOptions;
import org.springframework.ai.tool.annotation.Tool;
import org.springframework.ai.tool.annotation.ToolParam;

/**
 * Spring AI 2.0 with `llama serve`: chat, streaming, a tool.
 *
 * <pre>
 *     llama serve params/tiny
 *     cd examples/clients/spring_ai
 *     mvn -q compile exec:java -Dexec.mainClass=SpringAiClient -Dexec.args=http://127.0.0.1:8000
 * </pre>
 *
 * In a Spring Boot 4 application with `spring-ai-starter-model-openai` these properties take the
 * place of the builder, and `ChatClient.Builder` is injected:
 *
 * <pre>
 *     spring.ai.openai.base-url=http://127.0.0.1:8000/v1
 *     spring.ai.openai.api-key=none
 *     spring.ai.openai.chat.model=tiny
 * </pre>
 *
 * Spring AI 1.x adds the /v1 itself, so leave it out there, and has the model in
 * spring.ai.openai.chat.options.model.
 *
 * Written after Spring AI's reference for 2.0, and not run yet: the test of this file needs Maven
 * Central, and is skipped where there is none.
 */
public class SpringAiClient {
    /** Its methods are offered to the model. */
    static class Calculator {
        @Tool(name = "calculator", description = "Calculates")
        String calculate(
                @ToolParam(description = "Two whole numbers with +, - or * between them: 2 * 3")
                        String expression) {
            String[] words = expression.trim().split("\\s+");
            long left = Long.parseLong(words[0]);
            long right = Long.parseLong(words[2]);
            return switch (words[1]) {
                case "+" -> String.valueOf(left + right);
                case "-" -> String.valueOf(left - right);
                case "*" -> String.valueOf(left * right);
                default -> "error: unknown operator " + words[1];
            };
        }
    }

    public static void main(String[] arguments) {
        String url = arguments.length > 0 ? arguments[0] : "http://127.0.0.1:8000";
        String model = arguments.length > 1 ? arguments[1] : "tiny";
        OpenAiChatOptions options =
                OpenAiChatOptions.builder()
                        .baseUrl(url + "/v1")
                        .apiKey("none")
                        .model(model)
                        .temperature(0.0)
                        .build();
        ChatClient chat = ChatClient.create(OpenAiChatModel.builder().options(options).build());

        System.out.println("chat: " + chat.prompt("What is 12 + 30?").call().content());

        System.out.print("stream: ");
        chat.prompt("Hello! My name is Tom.")
                .stream()
                .content()
                .doOnNext(System.out::print)
                .blockLast();
        System.out.println();

        String answer =
                chat.prompt("What is 23 * 17?").tools(new Calculator()).call().content();
        System.out.println("tools: " + answer);
    }
}
