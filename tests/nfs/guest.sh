# guest.sh NFS_V4 NFS_V3_NOLOCK SERVER_DIRECTORY: runs in the lab guest (tests/kits/lab-nfs/run.sh calls it as test.sh).
export NFS4=$1 NFS3_NOLOCK=$2 SERVER=$3 NFS3=/mnt/l3 PYTHONPATH=/payload/project:/payload/site PYTHONDONTWRITEBYTECODE=1
modprobe fuse
mkdir "$NFS3"
rpc.statd 2>/dev/null # lockd asks it who has restarted
mount -t nfs -o vers=3,hard,timeo=10 127.0.0.1:/srv/x "$NFS3" || exit 3
printf '#!/usr/bin/python3\nimport sys\nfrom store.cli.main import main\nsys.exit(main())\n' >/usr/bin/vaultway
chmod 755 /usr/bin/vaultway
cd /payload/project || exit 3
suite() { # suite NAME PLACE TESTS...: TESTS with their scratch folders at PLACE
    echo "== $1"
    python3 -m pytest -q --color=no --durations=8 -p no:cacheprovider --basetemp="$2/$1" "${@:3}" 2>&1
    local code=$?
    echo "== $1: exit $code"
    worst=$((code > worst ? code : worst))
}
worst=0
store=tests/unit/store/datastore
bare="local and not retry and not limit and not cache and not mirror"
suite scenarios /tmp tests/nfs/on_nfs.py
suite contract-v4 "$NFS4" tests/contract/test_backend.py -k "$bare"
suite contract-v3 "$NFS3" tests/contract/test_backend.py -k "$bare"
suite datastore-v4 "$NFS4" $store/test_chunk_store.py $store/test_snapshots.py \
    -k "threads_insert or two_processes or interrupt_while"
exit $worst
