# The tracking server, in the pinned version of the client. docker-compose.yaml builds this image.
FROM python:3.11.14-slim-bookworm

RUN useradd --uid 1000 --create-home mlflow
COPY cluster/constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt mlflow boto3 psycopg2-binary==2.9.13

USER 1000:1000
ENV PYTHONUTF8=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
CMD ["mlflow", "server", "--help"]
