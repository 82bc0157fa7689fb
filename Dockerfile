# One image for every process group: `docker run user-service run requests relay`, `… migrate`, `… dead-letters list`.
# 3.13 is the newest Python that the tests run on with all embedded servers.

FROM python:3.13-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /build

COPY requirements/ requirements/
RUN pip install --require-hashes --requirement requirements/uv.txt \
    && python -m venv --without-pip /opt/user-service \
    && uv pip sync --require-hashes --compile-bytecode --python /opt/user-service/bin/python requirements/run.txt

# The wheel's argon2 knows SSE2 alone; every x86-64 server since 2015 can do better. See the entry point's check.
ARG ARGON2_MARCH=x86-64-v3
COPY deploy/build_argon2.py deploy/
RUN [ "$(uname -m)" != x86_64 ] || [ "$ARGON2_MARCH" = x86-64 ] \
    || python deploy/build_argon2.py --march "$ARGON2_MARCH" --python /opt/user-service/bin/python --required

COPY pyproject.toml README.md LICENSE ./
COPY contracts/ contracts/
COPY domain/ domain/
COPY adapters/ adapters/
COPY handlers/ handlers/
COPY migrations/ migrations/
RUN uv pip install --no-deps --compile-bytecode --build-constraints requirements/build.txt \
    --python /opt/user-service/bin/python .


FROM python:3.13-slim-trixie
RUN useradd --system --uid 10001 --home-dir /var/lib/user-service --shell /usr/sbin/nologin user-service \
    && install --directory --owner user-service --group user-service --mode 0700 /var/lib/user-service
COPY --from=build /opt/user-service/ /opt/user-service/
COPY deploy/docker-entrypoint.sh /usr/local/bin/

ARG ARGON2_MARCH=x86-64-v3
ENV ARGON2_MARCH=$ARGON2_MARCH \
    PATH=/opt/user-service/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HTTP_PORT=9090 \
    USER_SERVICE_HTTP_HOST=0.0.0.0
# By number, so that an orchestrator which forbids root can see that it is none.
USER 10001
WORKDIR /var/lib/user-service
EXPOSE 9090
STOPSIGNAL SIGTERM
# Ready, not merely alive: a replica that has lost PostgreSQL or NATS counts as unhealthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --start-interval=1s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"HTTP_PORT\"]}/health/ready', timeout=4)"]
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["run"]
