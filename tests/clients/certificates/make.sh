#!/bin/sh
# Makes the certificates of the tests anew: a CA, two certificates of a server, one of a client, one of another CA's client.
set -eu
cd "$(dirname "$0")"
ca() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj "/CN=$2" -keyout "$1.key" -out "$1.pem" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
}
leaf() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/O=nats-bridge/CN=$3" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=%s\n%s\nauthorityKeyIdentifier=keyid\n' "$4" "$5" >ext
    openssl x509 -req -in "$1.csr" -CA "$2.pem" -CAkey "$2.key" -days 36500 -extfile ext -out "$1.pem" 2>/dev/null
    rm "$1.csr" ext
}
ca ca 'nats-bridge test CA'
ca other-ca 'another test CA'
names=subjectAltName=DNS:localhost,IP:127.0.0.1
leaf server ca localhost serverAuth "$names"
leaf server-renewed ca localhost serverAuth "$names"
leaf client ca app clientAuth subjectAltName=DNS:app
leaf stranger other-ca app clientAuth subjectAltName=DNS:app
rm ca.key other-ca.key other-ca.pem
