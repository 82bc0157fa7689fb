#!/bin/sh
# Writes .env with a random secret for each role of compose.yaml; an .env that is there is left alone.
set -eu
cd "$(dirname "$0")/.."

if [ -e .env ]; then
    echo "compose-env: .env is there already and stays as it is"
    exit 0
fi

secret() {
    # 192 bits. The letter in front keeps nats-server from reading a password of digits as a number.
    printf 's%s' "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"
}

umask 077
{
    echo "# Made by \`make compose-env\`. PostgreSQL takes its passwords when its volume is made: to change them, remove that too."
    for name in POSTGRES_PASSWORD USER_SERVICE_OWNER_PASSWORD USER_SERVICE_PASSWORD VALKEY_PASSWORD NATS_WORKER_PASSWORD \
        NATS_GATEWAY_PASSWORD NATS_ADMIN_GATEWAY_PASSWORD NATS_LISTENER_PASSWORD NATS_OPERATOR_PASSWORD; do
        echo "$name=$(secret)"
    done
} > ".env.$$"
# A link is refused where .env has appeared meanwhile.
ln ".env.$$" .env
rm ".env.$$"
echo "compose-env: wrote .env"
