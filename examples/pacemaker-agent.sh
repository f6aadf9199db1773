#!/bin/sh
# A pool as a resource of Pacemaker: mounted on one node of the cluster, taken over by another.
#
#   install -D -m 755 pacemaker-agent.sh /usr/lib/ocf/resource.d/thinfs/pool
#   pcs resource create thin ocf:thinfs:pool pool=/srv/pool mountpoint=/mnt/thin \
#     fenced_by=pacemaker op start timeout=15min op stop timeout=5min op monitor interval=20s
#
# Start is thinfs mount --take-over, stop is thinfs umount, monitor is thinfs status. docs/HOSTS.md
#
# With fenced_by=pacemaker start says --old-host-is-off: thinfs fences nobody and takes the pool,
# whoever had it. So the cluster has to have fencing (stonith-enabled=true), and only the cluster
# may mount the pool: no person, no unit, no line in /etc/fstab, on no node. Pacemaker starts the
# pool on another node once it has fenced the one that had it. Start and validate-all refuse a
# cluster whose fencing is switched off, where crm_attribute tells. With fenced_by=thinfs the
# command of tenancy.fence in pool.yaml keeps the node before from writing.
#
# Stop fails (MOUNT_BUSY) while a volume is mounted or attached, and Pacemaker fences a node where
# stop fails. So the filesystems on volumes are resources of their own, which start after the pool
# and stop before it, on the same node: a group, or order and colocation. docs/HOSTS.md has an
# example.

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
  <longdesc lang="en">Mounts a thinfs pool that several nodes reach, and takes it over from a node that is gone. Nobody but the cluster may mount the pool. Filesystems on its volumes are resources of their own, which start after it and stop before it.</longdesc>
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
      <longdesc lang="en">Who sees to it that the node which had the pool writes no more. pacemaker: the cluster has fencing (stonith-enabled=true), and start takes the pool with --old-host-is-off, whoever had it. thinfs: the command of tenancy.fence in pool.yaml does it.</longdesc>
      <shortdesc lang="en">pacemaker or thinfs</shortdesc>
      <content type="string" default="pacemaker"/>
    </parameter>
  </parameters>
  <actions>
    <action name="start" timeout="900s"/>
    <action name="stop" timeout="300s"/>
    <action name="monitor" timeout="30s" interval="20s" depth="0"/>
    <action name="meta-data" timeout="5s"/>
    <action name="validate-all" timeout="30s"/>
  </actions>
</resource-agent>
XML
}

say() {
  echo "thinfs: $*" >&2
}

# /proc/self/mounts has blanks and backslashes as octal numbers.
is_mounted() {
  at=$mountpoint awk '
    $3 == "fuse.thinfs" {
      gsub(/\\040/, " ", $2)
      gsub(/\\011/, "\t", $2)
      gsub(/\\012/, "\n", $2)
      gsub(/\\043/, "#", $2)
      gsub(/\\134/, "\\", $2)
      if ($2 == ENVIRON["at"]) found = 1
    }
    END { exit !found }' /proc/self/mounts
}

# The mode of the mounted pool; nothing where nobody answers, or nobody serves the mount any more.
mode() {
  timeout 20 thinfs status "$mountpoint" --json | awk '
    /^  "mode": "/ { gsub(/[",]/, ""); mode = $2 }
    /^  "mount": \{/ { isServed = 1 }
    END { if (isServed) print mode }'
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
  # As the kernel has it: no links, no slashes that say nothing. readlink(1) does not ask a mount,
  # which may be dead; an old one does, and must not wait for it.
  mountpoint=$(timeout 20 readlink -m -- "$mountpoint") || {
    say "mountpoint cannot be resolved"
    return $ERR_GENERIC
  }
}

# Whether the cluster keeps the node before from writing, as far as can be known. Unset is true.
validate_fencing() {
  [ "$fenced_by" = pacemaker ] && command -v crm_attribute > /dev/null || return $SUCCESS
  case $(timeout 10 crm_attribute --type crm_config --name stonith-enabled --query --quiet \
    2> /dev/null) in
    false | off | no | n | 0)
      say "stonith-enabled is false: nobody keeps the node before from writing"
      return $ERR_CONFIGURED
      ;;
  esac
}

# Neither monitor nor stop look: they work where the folder cannot be reached any more.
validate_pool() {
  file=$pool
  if [ -d "$file" ]; then file=$file/pool.yaml; fi
  [ -f "$file" ] || {
    say "$file does not exist"
    return $ERR_INSTALLED
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
  validate_fencing || return
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
  validate-all) validate && validate_fencing && validate_pool ;;
  *)
    echo "usage: $0 {start|stop|monitor|validate-all|meta-data}" >&2
    exit $ERR_UNIMPLEMENTED
    ;;
esac
