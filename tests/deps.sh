#!/bin/sh
# deps.sh - make sure there is a C compiler and stb_ds.h; quiet when there is nothing to do.
# Missing things are installed with apt-get when this user may (root, or sudo without a password);
# otherwise one line says what to install.
CC=${CC:-cc}
need=
command -v "$CC" >/dev/null 2>&1 && echo 'int main(void){return 0;}' | "$CC" -xc - -o /dev/null -lm 2>/dev/null || need="gcc libc6-dev"
if [ -z "$need" ]; then
    { printf '#include <stb/stb_ds.h>\n' | "$CC" -xc -fsyntax-only - ||
      printf '#include "stb_ds.h"\n' | "$CC" -xc -fsyntax-only - ; } >/dev/null 2>&1 || need=libstb-dev
else
    need="$need libstb-dev"
fi
[ -z "$need" ] && exit 0

say="ftune needs: $need.  Debian, Ubuntu: sudo apt-get install $need"
command -v apt-get >/dev/null 2>&1 || { echo "$say" >&2; exit 1; }
if [ "$(id -u)" = 0 ]; then as=; elif sudo -n true 2>/dev/null; then as=sudo; else echo "$say" >&2; exit 1; fi
echo "installing $need" >&2
$as env DEBIAN_FRONTEND=noninteractive sh -c "apt-get update -qq && apt-get install -y -qq --no-install-recommends $need" >/dev/null ||
    { echo "could not install them. $say" >&2; exit 1; }
