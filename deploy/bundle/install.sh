#!/bin/sh
# Installs Quorate from this bundle; nothing is fetched. Nothing is started, and no state is touched.
#
#   ./install.sh server|operator|site|aggregator [--key FILE | --unsigned] [--prefix DIR] [--python PROGRAM] [--no-system]
#
# --key FILE    the publisher's minisign key, which you got by another way than the bundle; the signature must be its
# --unsigned    go on without: then only the checksums are compared, which protects against accidents and nobody else
# --prefix DIR  where programs go (/opt/quorate): DIR/VERSION, and DIR/current, a link that is switched last
# --no-system   no users, folders, units, links in /usr/local/bin: for a look, and where systemd is not
set -eu
umask 022

fail() {
    echo "install.sh: $1" >&2
    exit "${2:-1}"
}

here=$(cd "$(dirname "$0")" && pwd)
role=${1:-}
case $role in
    server) commands="quorate-server quorate" unit=server needs="quorate_server.daemon, quorate_operator.cli" ;;
    operator) commands=quorate unit='' needs=quorate_operator.cli ;;
    site) commands=quorate-client unit=client needs="quorate_client.cli, torch, tenseal, pyarrow" ;;
    aggregator) commands=quorate-aggregator unit=aggregator needs="quorate_server.aggregator.run, quorate_server.aggregator.cli" ;;
    *) fail "Say what to install: ./install.sh server, operator, site or aggregator." 2 ;;
esac
shift
key='' unsigned='' prefix=/opt/quorate python=python3 system=yes
while [ $# -gt 0 ]; do
    case $1 in
        --key) key=${2:?} && shift ;;
        --unsigned) unsigned=yes ;;
        --prefix) prefix=${2:?} && shift ;;
        --python) python=${2:?} && shift ;;
        --no-system) system='' ;;
        *) fail "Unknown: $1. The first lines of this file say what there is." 2 ;;
    esac
    shift
done

# 1. Is this the bundle that was published, whole?
cd "$here"
if [ -n "$key" ]; then
    command -v minisign >/dev/null || fail "minisign is not installed. It is a package of Debian, Fedora and others."
    minisign -Vq -p "$key" -m SHA256SUMS || fail "SHA256SUMS is not signed by $key. Do not install this; ask the publisher."
elif [ -z "$unsigned" ]; then
    fail "Name the publisher's key (--key FILE), or say --unsigned to go on without knowing who made this." 2
else
    echo "WARNING: the signature is not checked: anybody could have made this bundle." >&2
fi
sha256sum --check --quiet --strict SHA256SUMS || fail "A file is not what SHA256SUMS says. Copy the bundle again."
listed=$(sed 's/^[0-9a-f]*  //' SHA256SUMS | sort)
# Links, too: their targets would be installed, and lie anywhere.
found=$(find . ! -type d ! -path ./SHA256SUMS ! -path ./SHA256SUMS.minisig | sed 's|^\./||' | LC_ALL=C sort)
[ "$(printf %s "$listed" | LC_ALL=C sort)" = "$found" ] || fail "There are files that SHA256SUMS does not list. Unpack the bundle into an empty folder."

# 2. Does it fit this machine?
wanted=$(cat PYTHON)
has=$("$python" -c 'import platform, sys; print("%d.%d" % sys.version_info[:2], sys.platform, platform.machine())') ||
    fail "$python does not run. Install Python ${wanted%% *} or name it with --python."
[ "$has" = "$wanted" ] || fail "This bundle is for Python $wanted; $python is $has. Name another with --python, or get the bundle for yours."
[ -z "$system" ] || [ "$(id -u)" = 0 ] || fail "Run this as root, or with --no-system and a --prefix of yours." 2

# 3. The programs, in a folder of this version. Whatever goes wrong up to here and in here changes nothing that runs.
version=$(cat VERSION)
folder=$prefix/$version
mkdir -p "$folder"
"$python" -m venv --without-pip "$folder"
# An empty environment: what this machine has set for its own pip must not reach in.
env -i PATH="$PATH" PIP_CONFIG_FILE=/dev/null PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    "$folder/bin/python" "$(ls "$here"/wheels/pip-*.whl)/pip" install --quiet --no-index --find-links "$here/wheels" \
    --require-hashes --only-binary :all: --no-cache-dir -r "requirements-$role.txt"
for name in docs systemd config sbom.cdx.json; do
    rm -rf "${folder:?}/$name"
    cp -R "$name" "$folder/$name"
done
"$folder/bin/python" -P -c "import $needs" ||
    fail "It does not start on this machine, for the reason above (libstdc++6 missing?). $prefix/current is as it was."

# 4. Users, folders, units: systemd's own tools make them, from files that you can read first.
if [ -n "$system" ]; then
    install -D -m 644 systemd/quorate.sysusers /usr/lib/sysusers.d/quorate.conf
    install -D -m 644 systemd/quorate.tmpfiles /usr/lib/tmpfiles.d/quorate.conf
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers quorate.conf
        systemd-tmpfiles --create quorate.conf
    else
        echo "WARNING: there is no systemd here: make the users and folders of systemd/*.{sysusers,tmpfiles} yourself." >&2
    fi
    # Root can read a Python that lies in root's home, or a folder that a strict umask made.
    if [ -n "$unit" ] && id "quorate-$unit" >/dev/null 2>&1; then
        (cd / && runuser -u "quorate-$unit" -- "$folder/bin/python" -P -c "import $needs") ||
            fail "The user quorate-$unit cannot start it, for the reason above. Is $python where only root may read? $prefix/current is as it was."
    fi
    for file in ${unit:+systemd/quorate-"$unit"*}; do
        install -D -m 644 "$file" "/usr/lib/systemd/system/${file#systemd/}"
    done
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
fi

# 5. From here on, this version counts. The one before stays; to go back, switch the link.
ln -sfn "$version" "$prefix/.next"
mv -T "$prefix/.next" "$prefix/current"
if [ -n "$system" ]; then
    for name in $commands; do ln -sf "$prefix/current/bin/$name" "/usr/local/bin/$name"; done
fi
echo "Quorate $version ($role) is in $folder. Nothing was started: docs/guides/deployment.md says how to go on."
