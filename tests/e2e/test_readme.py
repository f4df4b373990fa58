"""The README's recipes, run as they stand on a throw-away copy of this machine."""

import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.s3_server import S3Server
from tests.throwaway_system import REPOSITORY, on_a_throwaway_system

pytestmark = [
    pytest.mark.needs("fuse", "nbd", "qemu", "root", "s3"),
    pytest.mark.xdist_group("mount"),
]

HEADING_OR_BLOCK = re.compile(
    r"^#+ (?P<heading>[^\n]+)$|^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
RUN = ("sh", "cron", "fstab", "toml")


class Recipe(NamedTuple):
    """A block of the README that is run, and the heading that it is under."""

    heading: str
    kind: str
    text: str


def recipes() -> list[Recipe]:
    heading, found = "", []
    for match in HEADING_OR_BLOCK.finditer((REPOSITORY / "README.md").read_text()):
        heading = match["heading"] or heading
        if match["kind"] in RUN:
            found.append(Recipe(heading, match["kind"], match["text"]))
    return found


# The machine that boots: it copies its first sector to the second, says so, and turns itself off.
BOOT_SECTOR = """
    .code16
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw $0x7c00, %bx
    movw $0x0301, %ax
    movw $2, %cx
    movb $0, %dh
    int $0x13
    jc off
    movw $0x7c00 + text, %si
    movw $0x3f8, %dx
next:
    lodsb
    outb %al, %dx
    testb %al, %al
    jnz next
off:
    movw $0x604, %dx
    movw $0x2000, %ax
    outw %ax, %dx
    hlt
text:
    .asciz "booted and written"
"""

# What the recipes take for granted, and short forms of what waits for a terminal or a systemd.
BEGINNING = r"""
set -euo pipefail
export HOME=/home/reader
S3={s3.endpoint} S3_ACCESS_KEY={s3.access_key} S3_SECRET_KEY={s3.secret_key}
mkdir -p $HOME /srv/www /srv/etc /dev/vg /mnt/datastore/store1 /etc/vaultway /backup
cd $HOME
mkdir .venv && ln -s {prefix}/bin .venv/bin
echo hello >/srv/www/index.html; echo text >/srv/etc/app.conf
mount --bind {golden}/datastore /mnt/datastore/store1
cp {golden}/keys/none.json encryption-key.json
mkdir -p guest/etc guest/home/ada; echo root >guest/etc/fstab; echo note >guest/home/ada/note
truncate -s 24M /dev/vg/vm; echo 'start=2048, type=L' | sfdisk -q /dev/vg/vm
mke2fs -q -t ext4 -d guest -E offset=1048576 /dev/vg/vm 22M
as --32 -o boot.o <<'END'
{boot_sector}
END
objcopy --output-target binary --only-section .text boot.o boot
dd status=none if=boot of=/dev/vg/vm conv=notrunc
vaultway() {{
    if [ "$1 $2" = "head discard" ]; then set -- "$@" --yes; fi
    if [ "$1" != export ]; then command vaultway "$@"; return; fi
    rm -f $HOME/exported; command vaultway "$@" >$HOME/exported & server=$!
    {{ set +x; }} 2>/dev/null
    until [ -s $HOME/exported ]; do kill -0 $server; sleep 0.05; done
}}
qemu-system-x86_64() {{
    timeout 100 qemu-system-x86_64 -accel tcg -display none -nic none -serial stdio "$@" >booted
    grep --text 'booted and written' booted
}}
finish() {{
    if [ -n "${{server:-}}" ]; then kill $server; wait $server; server=; fi
    if mountpoint -q /mnt/vault; then vaultway umount /mnt/vault; fi
}}
systemctl() {{ test -s /etc/systemd/system/vaultway-mount@.service; echo "systemctl $*"; }}
"""

BEFORE = {
    "In a bucket": """
        export VAULTWAY_PATH_STYLE=true
    """,
    "Configuration": """
        install -m 600 /dev/null /etc/vaultway/prod.secret; echo secret >/etc/vaultway/prod.secret
        cp .config/proxmox-backup/encryption-key.json /etc/vaultway/vault.json
    """,
    "The mount": """
        vaultway mount --install-helpers
        mkdir -p /mnt/prod; cp /etc/vaultway/vault.json /etc/vault.json
    """,
    "Write to it": """
        tar -C guest -cf site.tar .; cp /dev/vg/vm vm.raw
        mkdir -p /etc/pve/qemu-server; echo 'name: vm' >/etc/pve/qemu-server/101.conf
    """,
    "Without a mount": """
        first=$(ls /backup/vault/host/web01 | grep ^20 | head -n 1)
    """,
}
AFTER = {
    "Use it": """
        diff -r /srv /tmp/restored; cmp /srv/www/index.html /tmp/index.html; test -s disk.raw
        nbdcopy "nbd+unix:///?socket=/run/vault.sock" copy.raw; cmp copy.raw /dev/vg/vm
    """,
    "In a bucket": """
        bucket="--repository s3://backups/vault --endpoint $S3"
        vaultway restore host/$(hostname) root.pxar from-bucket $bucket
        diff -r /srv from-bucket
        unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY VAULTWAY_PATH_STYLE
    """,
    "Disks to write to": """
        vaultway mount /backup/vault /mnt/vault
        cmp --bytes 512 --ignore-initial 0:512 /mnt/vault/vm/100/latest/drive-scsi0.img{,}
    """,
}
EXAMPLE_BUCKET = "backups"
NOTHING_NEW = '[ "$(ls /backup/vault/host/web01)" = "$there" ]'


# In place of what every reader has otherwise.
STAND_INS = {
    "2026-01-02T03:04:05Z": "$first",
    "https://s3.example.com": "$S3",
    "AWS_ACCESS_KEY_ID=…": "AWS_ACCESS_KEY_ID=$S3_ACCESS_KEY",
    "AWS_SECRET_ACCESS_KEY=…": "AWS_SECRET_ACCESS_KEY=$S3_SECRET_KEY",
}


def stood_in_for(text: str) -> str:
    for example, ours in STAND_INS.items():
        text = text.replace(example, ours)
    return text


def script_of(recipe: Recipe) -> str:
    """What runs it, in bash."""
    if recipe.kind == "cron":
        *variables, line = recipe.text.splitlines()
        command = shlex.quote(line.split(maxsplit=6)[6])
        named = shlex.join(variables)
        run = f"env -i HOME=$HOME PYTHONPATH=$PYTHONPATH {named} /bin/sh -c {command}\n"
        return f"{run}there=$(ls /backup/vault/host/web01)\n{run}{NOTHING_NEW}\n"
    place = {"toml": "/etc/vaultway/config.toml", "fstab": "/etc/fstab"}.get(recipe.kind)
    if place is None:
        return stood_in_for(recipe.text)
    written = f"cat >{place} <<'END'\n{recipe.text}END\n"
    if recipe.kind == "toml":
        return f"{written}vaultway config check\n"
    return f"{written}finish; mount /mnt/vault; ls /mnt/vault/host/*; umount /mnt/vault\n"


def test_every_command_is_run() -> None:
    """Beside those that install, and run us."""
    text = (REPOSITORY / "README.md").read_text()
    others = [match["text"] for match in HEADING_OR_BLOCK.finditer(text) if match["kind"] == ""]
    commands = re.compile(r"^(export|vaultway|qemu-system-|rsync|\./)", re.MULTILINE)
    assert [block for block in others if commands.search(block)] == [
        "./scripts/demo\n./scripts/test\n"
    ]


def test_the_recipes(golden: Path, s3_server: S3Server) -> None:
    assert {recipe.kind for recipe in recipes()} == set(RUN)
    s3_server.boto3().create_bucket(Bucket=EXAMPLE_BUCKET)
    script = BEGINNING.format(
        prefix=sys.prefix, golden=golden, boot_sector=BOOT_SECTOR, s3=s3_server
    )
    heading = ""
    for recipe in recipes():
        if recipe.heading != heading:
            script += f"{AFTER.get(heading, '')}\nfinish\n"
            heading = recipe.heading
            script += f"echo '== {heading}'\n{BEFORE.get(heading, '')}\n"
        script += f"set -x\n{script_of(recipe)}{{ set +x; }} 2>/dev/null\n"
    script += f"{AFTER.get(heading, '')}\nfinish\n"
    print(on_a_throwaway_system(script, golden))
