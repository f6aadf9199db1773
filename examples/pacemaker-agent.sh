#!/bin/sh
# A pool as a resource of Pacemaker: mounted on one node of the cluster, taken over by another.
#
#   install -D -m 755 pacemaker-agent.sh /usr/lib/ocf/resource.d/thinfs/pool
#   pcs resource create thin ocf:thinfs:pool pool=/srv/pool mountpoint=/mnt/thin \
#     fenced_by=pacemaker op monitor interval=20s
#
# Start is thinfs mount --take-over, stop is thinfs umount, monitor is thinfs status. docs/HOSTS.md
#
# With fenced_by=pacemaker the cluster has to have fencing (stonith-enabled=true): Pacemaker starts the
# pool on another node once it has fenced the one that had it. With fenced_by=thinfs the command of
# tenancy.fence in pool.yaml does that.

readonly SUCCESS=0 ERR_GENERIC=1 ERR_UNIMPLEMENTED=3 ERR_INSTALLED=5 ERR_CONFIGURED=6 NOT_RUNNING=7

pool=${OCF_RESKEY_pool:-}
mountpoint=${OCF_RESKEY_mountpoint:-}
fenced_by=${OCF_RESKEY_fenced_by:-pacemaker}

meta_data() {
  cat <<'XML'
<?xml version="1.0"?>
<!DOCTYPE resource-agent SYSTEM "ra-api-1.dtd">
<resource-agent name="pool" version="1.0">
  <version>1.1</version>
  <longdesc lang="en">Mounts a thinfs pool that several nodes reach, and takes it over from a node that is gone.</longdesc>
  <shortdesc lang="en">Mounts a thinfs pool</shortdesc>
  <parameters>
    <parameter name="pool" required="1" unique="1">
      <longdesc lang="en">The pool.yaml, or the folder that has one.</longdesc>
      <shortdesc lang="en">pool</shortdesc>
      <content type="string"/>
    </parameter>
    <parameter name="mountpoint" required="1" unique="1">
      <longdesc lang="en">The folder in which the volumes are files; it is made.</longdesc>
      <shortdesc lang="en">mount point</shortdesc>
      <content type="string"/>
    </parameter>
    <parameter name="fenced_by" required="0" unique="0">
      <longdesc lang="en">Who sees to it that the node which had the pool writes no more: pacemaker, which needs fencing in the cluster, or thinfs, which needs tenancy.fence in pool.yaml.</longdesc>
      <shortdesc lang="en">pacemaker or thinfs</shortdesc>
      <content type="string" default="pacemaker"/>
    </parameter>
  </parameters>
  <actions>
    <action name="start" timeout="180s"/>
    <action name="stop" timeout="120s"/>
    <action name="monitor" timeout="30s" interval="20s" depth="0"/>
    <action name="meta-data" timeout="5s"/>
    <action name="validate-all" timeout="5s"/>
  </actions>
</resource-agent>
XML
}

say() {
  echo "thinfs: $*" >&2
}

is_mounted() {
  awk -v at="$mountpoint" '$2 == at && $3 == "fuse.thinfs" { found = 1 } END { exit !found }' \
    /proc/self/mounts
}

# The mode of the mounted pool; nothing where nobody answers.
mode() {
  timeout 20 thinfs status "$mountpoint" --json | sed -n 's/^  "mode": "\(.*\)",$/\1/p'
}

validate() {
  command -v thinfs > /dev/null || {
    say "thinfs is not installed"
    return $ERR_INSTALLED
  }
  case $mountpoint in
    /*) ;;
    *)
      say "mountpoint has to be an absolute path"
      return $ERR_CONFIGURED
      ;;
  esac
  case $fenced_by in
    pacemaker | thinfs) ;;
    *)
      say "fenced_by is pacemaker or thinfs"
      return $ERR_CONFIGURED
      ;;
  esac
  [ -n "$pool" ] || {
    say "pool is missing"
    return $ERR_CONFIGURED
  }
}

monitor() {
  is_mounted || return $NOT_RUNNING
  case $(mode) in
    write | out_of_data_space | out_of_metadata_space) return $SUCCESS ;;
    *) return $ERR_GENERIC ;;
  esac
}

start() {
  monitor && return $SUCCESS
  mkdir -p "$mountpoint" || return $ERR_GENERIC
  if [ "$fenced_by" = pacemaker ]; then set -- --old-host-is-off; else set --; fi
  thinfs mount "$pool" "$mountpoint" --take-over "$@" || return $ERR_GENERIC
  monitor
}

stop() {
  is_mounted || return $SUCCESS
  # A node that has lost the pool has nothing to commit, whoever uses the mount.
  if [ "$(mode)" = fail ]; then set -- --force; else set --; fi
  # It says so, too, when it could not commit; the mount is gone all the same.
  thinfs umount "$mountpoint" "$@"
  ! is_mounted || return $ERR_GENERIC
}

case ${1:-} in
  meta-data)
    meta_data
    exit $SUCCESS
    ;;
  start | stop | monitor) validate && "$1" ;;
  validate-all) validate ;;
  *)
    echo "usage: $0 {start|stop|monitor|validate-all|meta-data}" >&2
    exit $ERR_UNIMPLEMENTED
    ;;
esac
