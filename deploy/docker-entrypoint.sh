#!/bin/sh
# Stops here with a reason where the compiled argon2 would stop at the first login with an illegal instruction.
set -eu

if [ "$(uname -m)" = x86_64 ] && [ "${ARGON2_MARCH:-}" = x86-64-v3 ]; then
    flags=" $(sed -n '/^flags/{s/^[^:]*: *//p;q;}' /proc/cpuinfo) "
    for flag in avx avx2 bmi1 bmi2 f16c fma abm movbe; do
        case $flags in
            *" $flag "*) ;;
            *)
                echo "user-service: this image is built for x86-64-v3, and the processor has no $flag;" \
                    "build it with --build-arg ARGON2_MARCH=x86-64 for this machine" >&2
                exit 1
                ;;
        esac
    done
fi

# exec: the service itself is process 1 and gets the stop signal.
exec user-service "$@"
