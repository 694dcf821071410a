# cfpose on the CPU: docker build -t cfpose .
# A photo:     docker run --rm -v "$PWD:/data" cfpose predict /data/photo.jpg --save /data/out
# A server:    docker run --rm -p 127.0.0.1:8000:8000 cfpose serve --host 0.0.0.0
FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --upgrade pip && pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY --from=build /wheels /wheels
# hadolint ignore=DL3013
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[cpu,serve]" \
    && rm -r /wheels \
    && useradd --create-home --uid 1000 cfpose
USER 1000
WORKDIR /data
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
ENTRYPOINT ["cfpose"]
CMD ["serve", "--host", "0.0.0.0"]
