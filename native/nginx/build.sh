#!/usr/bin/env bash
# Builds the nginx module, checks that the nginx of this machine takes it, and installs it.
#
#   native/nginx/build.sh [--nginx-source DIR] [--nginx PROGRAM] [--build DIR] [--install DIR]
#
#   --nginx-source DIR   nginx's source tree: a release's, or what Debian's package nginx-dev has
#                        (default: /usr/share/nginx/src)
#   --nginx PROGRAM      the nginx that is to load the module (default: nginx; "none": no check)
#   --build DIR          where to build (default: a temporary directory, removed at the end)
#   --install DIR        where to put ngx_http_cafs_module.so (default: nginx's modules directory)
#
# Prints the module's path.  Needs the packages that native/install-deps.sh installs.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source_dir=/usr/share/nginx/src
nginx=nginx
build_dir=
install_dir=

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

while (($#)); do
    (($# > 1)) || fail "what to do with \"$1\"? The options stand at the top of $0"
    case $1 in
        --nginx-source) source_dir=$2 ;;
        --nginx) nginx=$2 ;;
        --build) build_dir=$2 ;;
        --install) install_dir=$2 ;;
        *) fail "unknown option $1" ;;
    esac
    shift 2
done

[[ -f $source_dir/src/core/nginx.h ]] ||
    fail "no nginx source in $source_dir: install nginx-dev (native/install-deps.sh), or use --nginx-source"
source_version=$(sed -n 's/^#define NGINX_VERSION *"\(.*\)"/\1/p' "$source_dir/src/core/nginx.h")
arguments=(--with-compat --with-threads --with-http_ssl_module --with-http_v2_module)
if [[ $nginx != none ]]; then
    command -v "$nginx" >/dev/null || fail "there is no $nginx: install it, or use --nginx none"
    about=$("$nginx" -V 2>&1)
    version=$(sed -n 's,^nginx version: nginx/\([0-9.]*\).*,\1,p' <<<"$about")
    [[ $version == "$source_version" ]] ||
        fail "$nginx is version $version, the source in $source_dir is $source_version: they must be the same"
    # With the options of the nginx that is to load it; modules that it loads itself do not matter.
    eval "arguments=($(sed -n 's/^configure arguments: //p' <<<"$about"))"
    kept=()
    for argument in "${arguments[@]}"; do
        case $argument in
            *=dynamic | --add-* | --with-cc-opt=* | --with-ld-opt=* | --with-stream* | --with-mail*) ;;
            *) kept+=("$argument") ;;
        esac
    done
    arguments=("${kept[@]}")
fi

if [[ -z $build_dir ]]; then
    build_dir=$(mktemp -d)
    trap 'rm -rf "$build_dir"' EXIT
fi
mkdir -p "$build_dir"
# configure writes beside itself.  Headers of nginx are not ours to warn about: -isystem.
cp -R "$source_dir/." "$build_dir"
cd "$build_dir"
warnings="-Wall -Wextra -Wconversion -Wshadow -Werror"
system=
for directory in src/core src/event src/event/modules src/os/unix src/http src/http/modules src/http/v2 objs; do
    system+=" -isystem $directory"
done
flags="-g -O2 -fPIC -fstack-protector-strong -D_FORTIFY_SOURCE=2 $warnings$system"
echo "build.sh: building for nginx $source_version" >&2
./configure "${arguments[@]}" --with-cc-opt="$flags ${CFLAGS-}" --with-ld-opt="-Wl,-z,relro -Wl,-z,now ${LDFLAGS-}" \
    --add-dynamic-module="$here" >configure.log 2>&1 || {
    tail -n 20 configure.log >&2
    fail "nginx's configure failed"
}
make -s -f objs/Makefile modules >make.log 2>&1 || {
    cat make.log >&2
    fail "the module does not compile"
}
built=$build_dir/objs/ngx_http_cafs_module.so

if [[ $nginx != none ]]; then
    mkdir -p "$build_dir/try"
    printf 'load_module "%s";\npid "%s/try/pid";\nerror_log stderr;\nevents {}\n' "$built" "$build_dir" \
        >"$build_dir/try/nginx.conf"
    "$nginx" -q -t -p "$build_dir/try" -c "$build_dir/try/nginx.conf" >"$build_dir/try/log" 2>&1 || {
        cat "$build_dir/try/log" >&2
        fail "this nginx does not take the module: was it built from another source or with other options?"
    }
    if [[ -z $install_dir ]]; then
        install_dir=$(sed -n 's/.*--modules-path=\([^ ]*\).*/\1/p' <<<"$about")
    fi
fi
[[ -n $install_dir ]] || fail "where should the module go? Use --install"
mkdir -p "$install_dir"
# Never half a module where a running nginx may look.
cp "$built" "$install_dir/.ngx_http_cafs_module.so.new"
mv "$install_dir/.ngx_http_cafs_module.so.new" "$install_dir/ngx_http_cafs_module.so"
echo "$install_dir/ngx_http_cafs_module.so"
