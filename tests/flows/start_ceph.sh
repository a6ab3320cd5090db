# Ceph on this machine: a monitor, one store in memory and an S3 gateway below $FOLDER, where each leaves a .pid file.
set -eu
FSID=$(cat /proc/sys/kernel/random/uuid)
OSD=$(cat /proc/sys/kernel/random/uuid)
MONITOR="[v2:127.0.0.1:$MONITOR_2,v1:127.0.0.1:$MONITOR_1]"
mkdir -p "$FOLDER/mon" "$FOLDER/osd0" "$FOLDER/log"
cat > "$FOLDER/ceph.conf" <<END
[global]
fsid = $FSID
mon initial members = a
mon host = [v2:127.0.0.1:$MONITOR_2/0,v1:127.0.0.1:$MONITOR_1/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
osd objectstore = memstore
memstore device bytes = 1073741824
osd memory target = 939524096
admin socket = $FOLDER/\$name.asok
log file = $FOLDER/log/\$name.log
pid file = $FOLDER/\$name.pid
run dir = $FOLDER
crash dir = $FOLDER
mon data = $FOLDER/mon
osd data = $FOLDER/osd0
keyring = $FOLDER/keyring
ms bind ipv6 = false
rgw frontends = beast endpoint=127.0.0.1:$GATEWAY
END
export CEPH_ARGS="--conf $FOLDER/ceph.conf"
{
    monmaptool --create --fsid "$FSID" --addv a "$MONITOR" "$FOLDER/monmap"
    ceph-authtool --create-keyring "$FOLDER/keyring" --gen-key -n mon. --cap mon 'allow *'
    ceph-authtool "$FOLDER/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    ceph-authtool "$FOLDER/keyring" --gen-key -n client.rgw --cap mon 'allow rwx' --cap osd 'allow rwx'
    ceph-authtool "$FOLDER/keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow profile osd'
    ceph-mon --mkfs -i a --monmap "$FOLDER/monmap" --keyring "$FOLDER/keyring" --setuser root --setgroup root
    ceph-mon -i a --setuser root --setgroup root
    ceph --connect-timeout 20 osd new "$OSD"
    ceph-osd -i 0 --mkfs --osd-uuid "$OSD" --setuser root --setgroup root
    ceph-osd -i 0 --setuser root --setgroup root
    until ceph osd stat | grep -q "1 up"; do sleep .2; done
    radosgw -n client.rgw --setuser root --setgroup root
    radosgw-admin user create --uid=test --display-name=test --access-key="$KEY" --secret-key="$SECRET"
} > "$FOLDER/log/start.log" 2>&1
