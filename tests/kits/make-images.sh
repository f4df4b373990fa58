#!/bin/bash
# make-images.sh OUT_DIR [FILES=2000] [BIG_MIB=64] [FS list, default: all]
# Makes disk images with known files for the tests of file-level restore, with no mount, loop device, device mapper or root-only call
# except for xfs, btrfs, ntfs and lvm-xfs, which are filled through what this machine has (kernel mounts for xfs, ntfs-3g for ntfs).
#   ext4.raw xfs.raw btrfs.raw ntfs.raw fat32.raw   bare file systems
#   gpt-lvm.raw   GPT: p1 FAT32 ESP, p2 LVM2 PV: VG "vgkit" with LVs root (ext4), data (xfs), and frag (ext4 over two segments)
#   mbr-multi.raw MBR: p1 FAT32, p2 NTFS, extended p5 ext4
#   tree.tar + tree.sha256 + tree.meta  the truth: sha256 of every file, and type/mode/size/mtime/link target of every entry
# Needs (Debian): e2fsprogs xfsprogs btrfs-progs ntfs-3g dosfstools mtools fdisk lvm2 python3
set -euo pipefail
OUT=${1:?usage: make-images.sh OUT_DIR [FILES] [BIG_MIB] [fs ...]}; N=${2:-2000}; BIG=${3:-64}; shift $(( $# < 3 ? $# : 3 ))
WANT=" ${*:-ext4 xfs btrfs ntfs fat32 gpt-lvm mbr-multi} "
T0=$(date +%s); mkdir -p "$OUT"; OUT=$(cd "$OUT" && pwd); W=$(mktemp -d "$OUT/.work.XXXXXX"); M=$W/mnt; mkdir $M
clean() { mountpoint -q $M && umount $M 2>/dev/null; rm -rf "$W"; }; trap clean EXIT
T=$W/tree
python3 - $T "$N" "$BIG" <<'X'
import os, random, sys
t, n, big = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]); r = random.Random('imgkit')
os.makedirs(t)
def w(p, b):
    p = os.path.join(t, p); os.makedirs(os.path.dirname(p), exist_ok=True)
    with open(p, 'wb') as f: f.write(b)
for i in range(n): w(f'many/d{i // 500:03d}/file-{i:06d}.dat', r.randbytes(r.choice((0, 1, 100, 700, 4095, 4096, 4097, 9000))))
with open(os.path.join(t, 'big.bin'), 'wb') as f:
    for i in range(big): f.write(r.randbytes(1 << 20))
w('names/with space.txt', b'space\n'); w('names/ünïcödé-日本語.txt', b'unicode\n'); w('names/' + 'l' * 200 + '.txt', b'long\n')
w('deep/' + '/'.join(f'n{i}' for i in range(40)) + '/leaf.txt', b'deep\n'); w('empty', b''); w('one', b'1')
os.makedirs(os.path.join(t, 'emptydir'))
with open(os.path.join(t, 'sparse.bin'), 'wb') as f: f.seek(20 << 20); f.write(b'tail'); f.seek(5 << 20); f.write(b'mid')
os.utime(os.path.join(t, 'one'), (981173106, 981173106))
X
cp -a $T $W/posix; P=$W/posix   # POSIX extras only for the Linux file systems
mkdir -p $P/posix; ln -s ../one $P/posix/symlink; ln -s /abs/dangling $P/posix/dangling; ln -s "$(printf 'x%.0s' {1..200})" $P/posix/longlink
ln $P/big.bin $P/posix/hardlink; mkfifo $P/posix/fifo; printf s > $P/posix/setuid; chmod 4755 $P/posix/setuid; printf m > $P/posix/mode0; chmod 0 $P/posix/mode0
setfattr -n user.kit -v hello $P/one 2>/dev/null || true
for i in $(seq 1 60); do dd if=/dev/urandom of=$P/posix/frag$((i%2)) bs=8k count=1 oflag=append conv=notrunc status=none; done
truth() { (cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum > "$OUT/$2.sha256"; find . -mindepth 1 -printf '%P\t%y\t%m\t%s\t%T@\t%l\n' | LC_ALL=C sort > "$OUT/$2.meta"); }
truth $T plain; truth $P posix
MB=$(( BIG + N / 60 + 40 )); out=""
ok() { out="$out $1"; }
has() { case $WANT in *" $1 "*) return 0;; esac; return 1; }
fill() { mount -o loop "$1" $M && cp -a "$2/." $M/ && sync && umount $M; }   # kernel driver
mkext4() { rm -f $1; truncate -s ${2}M $1; mkfs.ext4 -q -F -b 4096 -L kit -d $P -N $(( N + 4000 )) $1; }
mkxfs() { rm -f $1; truncate -s ${2}M $1; mkfs.xfs -q -f -L kit $1; fill $1 $P; }
mkfat() { rm -f $1; truncate -s ${2}M $1; mkfs.vfat -F 32 -n KIT $1 >/dev/null; (cd $T; for e in *; do mcopy -s -Q -m -i $1 "$e" ::/ ; done) 2>/dev/null || true; }
mkntfs_() { rm -f $1; truncate -s ${2}M $1; mkntfs -q -Q -F -L KIT $1 >/dev/null 2>&1; ntfs-3g -o big_writes $1 $M; cp -r --preserve=timestamps $T/. $M/; sync; umount $M; }
has ext4 && { mkext4 $OUT/ext4.raw $((MB + 60)); ok ext4; }
has xfs && { mkxfs $OUT/xfs.raw $((MB + 360)); ok xfs; }
has btrfs && { rm -f $OUT/btrfs.raw; truncate -s $((MB * 2 + 300))M $OUT/btrfs.raw; mkfs.btrfs -q -f -L kit -r $P $OUT/btrfs.raw >/dev/null; ok btrfs; }
has ntfs && { mkntfs_ $OUT/ntfs.raw $((MB + 60)) && ok ntfs; }
has fat32 && { mkfat $OUT/fat32.raw $((MB + 120)); (export MTOOLS_SKIP_CHECK=1; n=$(mdir -/ -b -i $OUT/fat32.raw :: 2>/dev/null | grep -vc '/$'); ) ; ok fat32; }
has gpt-lvm && {   # LVM metadata is written by hand in LVM2's own text format: no device mapper is needed
  D=$OUT/gpt-lvm.raw; rm -f $D; E=$((MB + 60)); XF=$((MB + 360)); TOT=$((1 + 40 + E + XF + 64 + 24)); truncate -s ${TOT}M $D
  printf 'label: gpt\nstart=1MiB,size=40MiB,type=U\nstart=41MiB,size=%dMiB,type=E6D6D379-F507-44C2-A23C-238F2A3DF928\n' $((TOT-42)) | sfdisk -q $D
  truncate -s 40M $W/esp; mkfs.vfat -F 32 -n ESP $W/esp >/dev/null; mcopy -s -i $W/esp $T/one $T/names ::/ 2>/dev/null || true; dd if=$W/esp of=$D bs=1M seek=1 conv=notrunc,sparse status=none
  mkext4 $W/lv.root $E; mkxfs $W/lv.data $XF; truncate -s 32M $W/lv.frag; mkdir $W/fr; cp $T/one $W/fr/; cp -r $T/names $W/fr/; dd if=/dev/urandom of=$W/fr/r bs=1M count=20 status=none; mkfs.ext4 -q -F -d $W/fr $W/lv.frag
  (cd $W/fr && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum > $OUT/lv-frag.sha256)
  python3 - $D $((41<<20)) $TOT $W/lv.root $W/lv.data $W/lv.frag <<'X'
import os, struct, sys
d, off, tot, root, data, frag = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
size = ((tot - 1) << 20) - off; EXT = 4 << 20; PE = 1 << 20
def crc(b, c=0xf597a6cf):
    t = []
    for i in range(256):
        x = i
        for _ in range(8): x = (x >> 1) ^ (0xEDB88320 if x & 1 else 0)
        t.append(x)
    for v in b: c = (c >> 8) ^ t[(c ^ v) & 255]
    return c & 0xffffffff
n = (size - PE) // EXT; ids = {k: (k * 32)[:32] for k in 'pvabc'}
dash = lambda s: '-'.join((s[:6], s[6:10], s[10:14], s[14:18], s[18:22], s[22:26], s[26:32]))
ex = lambda p: -(-os.path.getsize(p) // EXT)
cur = 0; lvs = ''; f = open(d, 'r+b')
def put(path, skip, at, cnt):
    with open(path, 'rb') as s:
        s.seek(skip * EXT)
        for i in range(cnt):
            b = s.read(EXT)
            if b.strip(b'\0'): f.seek(off + PE + (at + i) * EXT); f.write(b)
segs = {'root': [(root, 0, ex(root))], 'data': [(data, 0, ex(data))], 'frag': [(frag, 4, ex(frag) - 4), (frag, 0, 4)]}
place = {}
for nm, ss in segs.items():
    for p, skip, cnt in ss: put(p, skip, cur, cnt); place.setdefault(nm, []).append((skip, cnt, cur)); cur += cnt
assert cur <= n
for (nm, ss), i in zip(place.items(), 'abc'):
    ss.sort(); lvs += f'{nm} {{\nid = "{dash(ids[i])}"\nstatus = ["READ", "WRITE", "VISIBLE"]\nflags = []\ncreation_time = 1700000000\ncreation_host = "kit"\nsegment_count = {len(ss)}\n'
    for j, (st, cnt, at) in enumerate(ss, 1): lvs += f'segment{j} {{\nstart_extent = {st}\nextent_count = {cnt}\ntype = "striped"\nstripe_count = 1\nstripes = [\n"pv0", {at}\n]\n}}\n'
    lvs += '}\n'
txt = (f'vgkit {{\nid = "{dash(ids["v"])}"\nseqno = 5\nformat = "lvm2"\nstatus = ["RESIZEABLE", "READ", "WRITE"]\nflags = []\nextent_size = {EXT >> 9}\nmax_lv = 0\nmax_pv = 0\nmetadata_copies = 0\n\n'
  f'physical_volumes {{\npv0 {{\nid = "{dash(ids["p"])}"\ndevice = "/dev/kit"\nstatus = ["ALLOCATABLE"]\nflags = []\ndev_size = {size >> 9}\npe_start = {PE >> 9}\npe_count = {n}\n}}\n}}\n\nlogical_volumes {{\n{lvs}}}\n}}\n'
  '# Generated by make-images.sh\ncontents = "Text Format Volume Group"\nversion = 1\ndescription = ""\ncreation_host = "kit"\ncreation_time = 1700000000\n\0').encode()
MDA, MS = 4096, PE - 4096
lab = ids['p'].encode() + struct.pack('<Q', size) + struct.pack('<QQ', PE, 0) + bytes(16) + struct.pack('<QQ', MDA, MS) + bytes(16)
body = struct.pack('<I8s', 32, b'LVM2 001') + lab; body += bytes(512 - 20 - len(body))
f.seek(off + 512); f.write(b'LABELONE' + struct.pack('<QI', 1, crc(body)) + body)
h = b' LVM2 x[5A%r0N*>' + struct.pack('<IQQ', 1, MDA, MS) + struct.pack('<QQII', 512, len(txt), crc(txt), 0); h += bytes(512 - 4 - len(h))
f.seek(off + MDA); f.write(struct.pack('<I', crc(h)) + h + txt); f.close()
X
  ok gpt-lvm; }
has mbr-multi && { D=$OUT/mbr-multi.raw; rm -f $D; A=$((MB+120)) B=$((MB+60)) C=$((MB+60)); truncate -s $((1+A+B+C+20))M $D
  mkfat $W/a $A; mkntfs_ $W/b $B; mkext4 $W/c $C
  printf 'label: dos\nstart=1MiB,size=%dMiB,type=c\nstart=%dMiB,size=%dMiB,type=7\nstart=%dMiB,size=%dMiB,type=5\nstart=%dMiB,size=%dMiB,type=83\n' $A $((1+A)) $B $((1+A+B)) $((C+10)) $((1+A+B+2)) $C | sfdisk -q $D
  dd if=$W/a of=$D bs=1M seek=1 conv=notrunc,sparse status=none; dd if=$W/b of=$D bs=1M seek=$((1+A)) conv=notrunc,sparse status=none; dd if=$W/c of=$D bs=1M seek=$((1+A+B+2)) conv=notrunc,sparse status=none; ok mbr-multi; }
echo "make-images: ok images=[${out# }] plain_files=$(wc -l < $OUT/plain.sha256) posix_files=$(wc -l < $OUT/posix.sha256) used=$(du -cm $OUT/*.raw | tail -1 | cut -f1)MiB seconds=$(( $(date +%s) - T0 ))"
