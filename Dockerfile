# The service in a container: no compiler, no root, nothing written outside /data and /run.
#
# The image is made by the same script and from the same lock as any other installation. A package registry other
# than pip's own default is given at build time: docker build --secret id=pip,src=pip.conf .

FROM debian:12-slim AS build
WORKDIR /opt/birthmark
COPY pyproject.toml ./
COPY requirements requirements
COPY scripts scripts
COPY src src
RUN --mount=type=secret,id=pip,target=/etc/pip.conf scripts/install --runtime --fixed

FROM debian:12-slim
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 birthmark \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin birthmark \
    && install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=build /opt/birthmark/.venv /opt/birthmark/.venv
COPY deploy/container/healthcheck /opt/birthmark/healthcheck
ENV PATH=/opt/birthmark/.venv/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
VOLUME /data
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/opt/birthmark/healthcheck"]
ENTRYPOINT ["birthmark"]
CMD ["serve", "--settings", "/data/realm/birthmark.toml"]
