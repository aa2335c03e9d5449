#!/usr/bin/env bash
# Installs the Debian packages that cafs needs to be built and mounted.
# As root or through sudo; quick, and without network, when all of them are there.
set -euo pipefail

packages=(
    python3 python3-venv python3-dev   # the interpreter, its venv module and its headers
    gcc libc6-dev pkg-config           # compile the chunker and pyfuse3
    libfuse3-dev fuse3                 # pyfuse3 links libfuse3; fusermount3 mounts for ordinary users
    libssl-dev                         # SHA-256 in the chunker
    libxxhash-dev                      # XXH3 of the index's values; compiled in, not linked
    ca-certificates                    # pip
    nginx                              # stands in front of a store: cafs serve
    nginx-dev make                     # its headers and configure: build our module for it
    liblmdb-dev libzstd-dev            # the module reads the index and compressed chunks
    libnginx-mod-http-headers-more-filter  # no Server header, as in Cloud Foundry
    libnginx-mod-http-dav-ext          # PROPFIND of an nginx without us: the control in tests
    openssl curl                       # the development certificate; README's examples
    attr acl                           # setfattr, setfacl: the tests compare with them
)

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $state == installed ]] || missing+=("$package")
done

if ((${#missing[@]})); then
    if ! command -v apt-get >/dev/null; then
        echo "install-deps.sh: no apt-get here; install what corresponds to: ${missing[*]}" >&2
        exit 1
    fi
    as_root=()
    if ((EUID != 0)); then
        if ! command -v sudo >/dev/null; then
            echo "install-deps.sh: run it as root, or install sudo; missing: ${missing[*]}" >&2
            exit 1
        fi
        as_root=(sudo)
    fi
    echo "install-deps.sh: installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

if [[ ! -e /dev/fuse ]]; then
    echo "install-deps.sh: note: there is no /dev/fuse yet; load it with: modprobe fuse" >&2
fi
