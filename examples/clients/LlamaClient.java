import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;

/**
 * A client of `llama serve` without a library: chat, streaming, a tool, embeddings, reranking.
 *
 * <pre>
 *     llama serve params/tiny
 *     java examples/clients/LlamaClient.java http://127.0.0.1:8000       # JDK 17, one file
 * </pre>
 *
 * JSON is read and written by the short class at the end, so that the file runs as it is; with
 * Jackson or Gson in a project, leave that class out.
 */
public class LlamaClient {
    private final HttpClient http = HttpClient.newHttpClient();
    private final String url;
    private final String model;

    LlamaClient(String url, String model) {
        this.url = url;
        this.model = model;
    }

    /** The answer's message: its text is `content`, the calls of tools are `tool_calls`. */
    Object chat(List<Object> messages, List<Object> tools) throws Exception {
        Map<String, Object> body = chatBody(messages);
        if (!tools.isEmpty()) {
            body.put("tools", tools);
        }
        Object answer = Json.read(post("/v1/chat/completions", body, BodyHandlers.ofString()));
        return Json.at(answer, "choices", 0, "message");
    }

    /** Prints the answer as it comes, from server-sent events: lines of `data: {...}`. */
    void stream(List<Object> messages) throws Exception {
        Map<String, Object> body = chatBody(messages);
        body.put("stream", true);
        try (Stream<String> lines = post("/v1/chat/completions", body, BodyHandlers.ofLines())) {
            for (Iterator<String> each = lines.iterator(); each.hasNext(); ) {
                String line = each.next();
                if (!line.startsWith("data: ") || line.equals("data: [DONE]")) {
                    continue; // empty lines end events, lines that begin with a colon are comments
                }
                Object event = Json.read(line.substring("data: ".length()));
                if (Json.at(event, "error") != null) {
                    throw new IOException(line);
                }
                if (Json.at(event, "choices", 0, "delta", "content") instanceof String text) {
                    System.out.print(text);
                    System.out.flush();
                }
            }
        }
        System.out.println();
    }

    /** A vector of length 1 for each text. */
    List<Object> embed(List<Object> texts) throws Exception {
        Map<String, Object> body = Json.object("model", model, "input", texts);
        Object answer = Json.read(post("/v1/embeddings", body, BodyHandlers.ofString()));
        List<Object> vectors = new ArrayList<>();
        for (Object each : (List<?>) Json.at(answer, "data")) {
            vectors.add(Json.at(each, "embedding"));
        }
        return vectors;
    }

    /** The number of the document that is the most relevant to a query. */
    int mostRelevant(String query, List<Object> documents) throws Exception {
        Map<String, Object> body =
                Json.object("model", model, "query", query, "documents", documents, "top_n", 1);
        Object answer = Json.read(post("/v1/rerank", body, BodyHandlers.ofString()));
        return ((Number) Json.at(answer, "results", 0, "index")).intValue();
    }

    private Map<String, Object> chatBody(List<Object> messages) {
        return Json.object("model", model, "messages", messages, "temperature", 0);
    }

    private <T> T post(String path, Object body, HttpResponse.BodyHandler<T> handler)
            throws IOException, InterruptedException {
        HttpRequest request =
                HttpRequest.newBuilder(URI.create(url + path))
                        .header("Content-Type", "application/json")
                        .header("Authorization", "Bearer none") // a key, where the server has any
                        .POST(HttpRequest.BodyPublishers.ofString(Json.write(body)))
                        .build();
        HttpResponse<T> response = http.send(request, handler);
        if (response.statusCode() != 200) {
            Object text = response.body();
            if (text instanceof Stream<?> lines) {
                text = String.join("\n", lines.map(String::valueOf).toList());
            }
            throw new IOException(response.statusCode() + " " + text);
        }
        return response.body();
    }

    private static Map<String, Object> message(String role, String content) {
        return Json.object("role", role, "content", content);
    }

    /** The tool: two whole numbers with +, - or * between them. */
    private static String calculate(String expression) {
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

    public static void main(String[] arguments) throws Exception {
        String url = arguments.length > 0 ? arguments[0] : "http://127.0.0.1:8000";
        String model = arguments.length > 1 ? arguments[1] : "tiny";
        LlamaClient client = new LlamaClient(url, model);

        List<Object> sum = List.of(message("user", "What is 12 + 30?"));
        System.out.println("chat: " + Json.at(client.chat(sum, List.of()), "content"));

        System.out.print("stream: ");
        client.stream(List.of(message("user", "Hello! My name is Tom.")));

        Object parameters =
                Json.object(
                        "type", "object",
                        "properties", Json.object("expression", Json.object("type", "string")),
                        "required", List.of("expression"));
        Object function =
                Json.object(
                        "name", "calculator",
                        "description", "Calculates",
                        "parameters", parameters);
        List<Object> tools = List.of(Json.object("type", "function", "function", function));
        List<Object> messages = new ArrayList<>();
        messages.add(message("user", "What is 23 * 17?"));
        Object answer = client.chat(messages, tools);
        while (Json.at(answer, "tool_calls") instanceof List<?> calls && !calls.isEmpty()) {
            messages.add(answer);
            for (Object call : calls) {
                Object given = Json.read((String) Json.at(call, "function", "arguments"));
                Map<String, Object> result =
                        message("tool", calculate((String) Json.at(given, "expression")));
                result.put("tool_call_id", Json.at(call, "id"));
                messages.add(result);
            }
            answer = client.chat(messages, tools);
        }
        System.out.println("tools: " + Json.at(answer, "content"));

        List<Object> facts =
                List.of("Tom lives in Lima.", "Clara is a doctor.", "The park opens at nine.");
        List<Object> vectors = client.embed(facts);
        int size = ((List<?>) vectors.get(0)).size();
        System.out.println("embeddings: " + vectors.size() + " of size " + size);
        String question = "Where does Tom live?";
        System.out.println("rerank: " + facts.get(client.mostRelevant(question, facts)));
    }

    /** JSON as maps, lists, strings, numbers, booleans and null. */
    static final class Json {
        private final String text;
        private int at;

        private Json(String text) {
            this.text = text;
        }

        /** `object("a", 1, "b", 2)` is {"a": 1, "b": 2}. */
        static Map<String, Object> object(Object... keysAndValues) {
            Map<String, Object> map = new LinkedHashMap<>();
            for (int i = 0; i < keysAndValues.length; i += 2) {
                map.put((String) keysAndValues[i], keysAndValues[i + 1]);
            }
            return map;
        }

        /** What is found by keys and indices one after the other; null if it is not there. */
        static Object at(Object value, Object... path) {
            for (Object step : path) {
                if (value instanceof Map<?, ?> map) {
                    value = map.get(step);
                } else if (value instanceof List<?> list && step instanceof Integer i) {
                    value = i < list.size() ? list.get(i) : null;
                } else {
                    return null;
                }
            }
            return value;
        }

        static String write(Object value) {
            if (value instanceof Map<?, ?> map) {
                List<String> members = new ArrayList<>();
                map.forEach((key, each) -> members.add(quote((String) key) + ":" + write(each)));
                return "{" + String.join(",", members) + "}";
            }
            if (value instanceof List<?> list) {
                return "[" + String.join(",", list.stream().map(Json::write).toList()) + "]";
            }
            return value instanceof String string ? quote(string) : String.valueOf(value);
        }

        private static String quote(String string) {
            StringBuilder out = new StringBuilder("\"");
            for (char c : string.toCharArray()) {
                if (c == '"' || c == '\\') {
                    out.append('\\').append(c);
                } else if (c < ' ' || Character.isSurrogate(c)) {
                    out.append(String.format("\\u%04x", (int) c));
                } else {
                    out.append(c);
                }
            }
            return out.append('"').toString();
        }

        static Object read(String text) {
            Json json = new Json(text);
            Object value = json.value();
            if (json.peek() != '\0') {
                throw json.wrong();
            }
            return value;
        }

        /** The next character that is no space, which stays; '\0' at the end. */
        private char peek() {
            while (at < text.length() && Character.isWhitespace(text.charAt(at))) {
                at++;
            }
            return at < text.length() ? text.charAt(at) : '\0';
        }

        private boolean take(char c) {
            if (peek() != c) {
                return false;
            }
            at++;
            return true;
        }

        private void need(char c) {
            if (!take(c)) {
                throw wrong();
            }
        }

        private IllegalArgumentException wrong() {
            return new IllegalArgumentException("no JSON at character " + at + ": " + text);
        }

        private Object value() {
            char first = peek();
            if (take('{')) {
                Map<String, Object> map = new LinkedHashMap<>();
                while (!take('}')) {
                    if (!map.isEmpty()) {
                        need(',');
                    }
                    peek();
                    String key = string();
                    need(':');
                    map.put(key, value());
                }
                return map;
            }
            if (take('[')) {
                List<Object> list = new ArrayList<>();
                while (!take(']')) {
                    if (!list.isEmpty()) {
                        need(',');
                    }
                    list.add(value());
                }
                return list;
            }
            if (first == '"') {
                return string();
            }
            int start = at;
            while (at < text.length() && ",]} \t\r\n".indexOf(text.charAt(at)) < 0) {
                at++;
            }
            String word = text.substring(start, at);
            return switch (word) {
                case "true" -> true;
                case "false" -> false;
                case "null" -> null;
                case "" -> throw wrong();
                default -> Double.valueOf(word);
            };
        }

        private String string() {
            need('"');
            StringBuilder out = new StringBuilder();
            while (true) {
                if (at >= text.length()) {
                    throw wrong();
                }
                char c = text.charAt(at++);
                if (c == '"') {
                    return out.toString();
                }
                if (c != '\\') {
                    out.append(c);
                    continue;
                }
                char escaped = text.charAt(at++);
                switch (escaped) {
                    case 'n' -> out.append('\n');
                    case 't' -> out.append('\t');
                    case 'r' -> out.append('\r');
                    case 'b' -> out.append('\b');
                    case 'f' -> out.append('\f');
                    case 'u' -> {
                        out.append((char) Integer.parseInt(text.substring(at, at + 4), 16));
                        at += 4;
                    }
                    default -> out.append(escaped);
                }
            }
        }
    }
}
