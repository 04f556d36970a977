#!/bin/sh
# A device's first boot, with curl and openssl alone: it turns what its image carries into an identity of its own,
# proves that, gets a certificate for where it works, and reports to the gateway.  Run it at every boot: what is
# there is not done again, and what was interrupted goes on.
#
#   first-boot.sh HARDWARE-ID [STEP...]
#
#   enrol     make a key and have it certified (EST simpleenroll)             -> identity.pem, identity.token
#   local     with the identity, a certificate for where it works             -> local.pem
#   renew     replace that by one with a new key (EST simplereenroll); it is good until the new one is used
#   contact   report to the gateway
#   reset     factory reset: all goes but the identity
#
# Without a step: enrol; local, if LOCAL_RUN is set; contact, if there is a gateway.  HARDWARE-ID is the text that stands in the
# certificate, without its kind.
#
# In the directory $DEVICE (the current one if that is not set) there have to be gateway.json, gateway-ca.pem and either
# provisioning.pem with provisioning.key, or provisioning.code (a line NAME:CODE): what 'birthmark shared make' packs,
# or 'birthmark bootstrap' gives.  LOCAL_RUN is the id of the operational run; unset, the step asks for the
# service's own default.
# GATEWAY and EST overrule what gateway.json says.
#
# Exit code: 0 done; 1 refused, and asking again changes nothing; 75 try again later.

set -eu
umask 077

say() { printf 'first-boot: %s\n' "$*" >&2; }
refused() { say "$*"; exit 1; }
later() { say "$*: try again later"; exit 75; }

[ $# -ge 1 ] || { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 1; }
hardware_id=$1
shift
cd "${DEVICE:-.}"
work=$(mktemp -d ./.first-boot.XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 75' HUP INT TERM

# A member of gateway.json, which has one a line; empty if it is not there or null.
setting() { sed -n "s/^ *\"$1\": \"\(.*\)\",\{0,1\}\$/\1/p" gateway.json 2>/dev/null; }

est=${EST:-$(setting est)}
[ -n "$est" ] || refused "gateway.json does not say where EST is"
plane=${est%%/.well-known/*}
gateway=${GATEWAY:-$(setting gateway)}
local_est=$plane/.well-known/est${LOCAL_RUN:+/$LOCAL_RUN}

# ask URL [CURL-OPTION...]: the answer is $work/answer, its head $work/head, its status $status.
ask() {
    url=$1
    shift
    status=$(curl --silent --show-error --max-time 60 --proto =https --tlsv1.2 --cacert gateway-ca.pem \
        --dump-header "$work/head" --output "$work/answer" --write-out '%{http_code}' "$@" "$url") ||
        later "no answer from $url"
}

# Post the request in a file (PEM), and wait while a person has to look at it (202).
post() {
    sed '/^-----/d' "$1" >"$work/body"
    url=$2
    shift 2
    while
        ask "$url" --header 'Content-Type: application/pkcs10' --data-binary "@$work/body" "$@"
        [ "$status" = 202 ]
    do
        pause=$(sed -n 's/^[Rr]etry-[Aa]fter: *\([0-9]\{1,5\}\).*/\1/p' "$work/head")
        say "it waits for a person"
        sleep "${pause:-30}"
    done
    granted
}

granted() {
    case $status in
    2??) ;;
    429 | 5??) later "status $status: $(head -c 400 "$work/answer")" ;;
    *) refused "status $status: $(head -c 400 "$work/answer")" ;;
    esac
}

request() { openssl req -new -key "$1" -subj "/CN=$hardware_id" -out "$2"; }
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }

# What the certificates in $work/answer are, as PEM.
certificates() {
    openssl base64 -d -A -in "$work/answer" >"$work/der"
    openssl pkcs7 -inform DER -in "$work/der" -print_certs | sed -n '/^-----BEGIN/,/^-----END/p'
}

# receive KEY NAME BASE: put key, certificate and the authorities above it into NAME.pem, if they belong together.
receive() {
    certificates >"$work/own.pem"
    ask "$3/cacerts"
    granted
    certificates >"$work/above.pem"
    openssl verify -x509_strict -CAfile "$work/above.pem" "$work/own.pem" >/dev/null ||
        refused "the certificate has no path to a root"
    [ "$(openssl x509 -in "$work/own.pem" -noout -pubkey)" = "$(openssl pkey -in "$1" -pubout)" ] ||
        refused "the certificate is for another key"
    cat "$1" "$work/own.pem" "$work/above.pem" >"$work/whole.pem"
    sync "$work/whole.pem" 2>/dev/null || sync
    mv "$work/whole.pem" "$2.pem"
}

enrol() {
    if [ ! -s identity.pem ]; then
        # The key is made once: asked again with it, the service answers the same.
        [ -s identity.key ] || { key "$work/key" && mv "$work/key" identity.key; }
        [ -s identity.csr ] || { request identity.key "$work/csr" && mv "$work/csr" identity.csr; }
        if [ -s provisioning.code ]; then
            printf 'user = "%s"\n' "$(cat provisioning.code)" >"$work/who"
        else
            printf 'cert = "provisioning.pem"\nkey = "provisioning.key"\n' >"$work/who"
        fi
        post identity.csr "$est/simpleenroll" --config "$work/who"
        receive identity.key identity "$est"
        say "identity received"
    fi
    [ -s identity.token ] || prove
    rm -f identity.key identity.csr identity.signature
}

# The gate: the service tells octets that name this certificate, the new key signs them, and the device is released.
# The signature is kept until the answer is there: asked again with it, the service answers the same.
prove() {
    if [ ! -s identity.signature ]; then
        ask "$plane/v1/proof" --cert identity.pem
        granted
        own=$(openssl x509 -in identity.pem -noout -fingerprint -sha256 | sed 's/.*=//; s/://g' | tr 'A-F' 'a-f')
        grep -q "^$own\$" "$work/answer" || refused "what is to be signed is about another certificate"
        openssl dgst -sha256 -sign identity.pem -out "$work/signature" "$work/answer"
        mv "$work/signature" identity.signature
    fi
    ask "$plane/v1/proof" --cert identity.pem --header 'Content-Type: application/octet-stream' \
        --data-binary @identity.signature
    granted
    mv "$work/answer" identity.token
    say "released"
}

# Show a certificate: the handshake with it is the proof, and the one before ends.
use() {
    ask "$plane/v1/proof" --cert "$1"
    granted
}

local_certificate() {
    [ ! -s local.pem ] || return 0
    [ -s local.key ] || { key "$work/key" && mv "$work/key" local.key; }
    request local.key "$work/csr"
    post "$work/csr" "$local_est/simpleenroll" --cert identity.pem
    receive local.key local "$local_est"
    rm -f local.key
    use local.pem
    say "certified for where it works"
}

renew() {
    key "$work/key"
    openssl x509 -x509toreq -in local.pem -key "$work/key" -copy_extensions copy -out "$work/csr" 2>/dev/null
    post "$work/csr" "$local_est/simplereenroll" --cert local.pem
    receive "$work/key" next "$local_est"
    mv next.pem local.pem
    use local.pem
    say "renewed"
}

contact() {
    shown=local.pem
    [ -s "$shown" ] || shown=identity.pem
    ask "$gateway/v1/contact" --request POST --cert "$shown"
    granted
    say "the gateway accepts it: $(head -c 200 "$work/answer")"
}

[ $# -gt 0 ] || set -- enrol ${LOCAL_RUN:+local} ${gateway:+contact}
for step; do
    case $step in
    enrol) enrol ;;
    local) local_certificate ;;
    renew) renew ;;
    contact) contact ;;
    reset) rm -f local.pem local.key next.pem ;;
    *) refused "there is no step $step" ;;
    esac
done
