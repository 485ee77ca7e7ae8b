# llama serve in a container: the bundled model, or those under /models.
#
#     docker build -t llama .
#     docker run -p 8000:8000 llama
#     docker run -p 8000:8000 -v ./models:/models llama /models/Llama-3.2-1B-Instruct
FROM python:3.11-slim

# The native CPU kernels are compiled for the processor that they run on, at the first start.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH
COPY requirements.txt .
RUN pip install --no-cache-dir --progress-bar off -r requirements.txt
COPY llama llama
COPY params/tiny params/tiny

RUN useradd --create-home llama && mkdir /models && chown llama /models
USER llama
VOLUME /models
ENV LLAMA_MODELS=/models LLAMA_SERVE_HOST=0.0.0.0 PYTHONUNBUFFERED=1
EXPOSE 8000
# 503 while the model loads and while the server drains.
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health')"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "llama", "serve"]
CMD ["params/tiny"]
