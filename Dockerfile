# The proxy and nothing else. Mount the config (and the files of its tools) at /etc/asynclm.
FROM python:3.11-slim AS build
COPY . /src
RUN python -m venv /opt/asynclm && /opt/asynclm/bin/pip install --no-cache-dir /src

FROM python:3.11-slim
COPY --from=build /opt/asynclm /opt/asynclm
RUN useradd --uid 10001 asynclm
USER 10001
WORKDIR /etc/asynclm
ENV PATH=/opt/asynclm/bin:$PATH ASYNCLM_SERVER_HOST=0.0.0.0
EXPOSE 8787
# There is no curl in slim images; http.client, unlike urllib, takes no notice of HTTP_PROXY.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8787, timeout=2); c.request('GET', '/healthz'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["asynclm"]
CMD ["serve", "--config", "/etc/asynclm/asynclm.toml"]
