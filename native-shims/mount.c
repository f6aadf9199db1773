/* mount(2), and the socket over which fusermount3 hands its descriptor. */
#define _GNU_SOURCE
#include "napi.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

/* mount_attach(source, target, type, flags, data): mount(2). */
static napi_value mount_attach(napi_env env, napi_callback_info info) {
  napi_value arguments[5];
  char source[PATH_MAX], target[PATH_MAX], type[64], data[4096];
  int64_t flags;
  if (!thinfs_arguments(env, info, 5, arguments) ||
      !thinfs_string(env, arguments[0], source, sizeof source) ||
      !thinfs_string(env, arguments[1], target, sizeof target) ||
      !thinfs_string(env, arguments[2], type, sizeof type) ||
      !thinfs_integer(env, arguments[3], &flags) ||
      !thinfs_string(env, arguments[4], data, sizeof data))
    return NULL;
  if (mount(source, target, type, (unsigned long)flags, data) != 0)
    return thinfs_throw(env, errno, "mount");
  return NULL;
}

/* socket_pair(): two connected unix sockets as [number, number], closed on exec. */
static napi_value socket_pair(napi_env env, napi_callback_info info) {
  int sockets[2];
  napi_value pair = NULL;
  (void)info;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
    return thinfs_throw(env, errno, "socketpair");
  napi_create_array_with_length(env, 2, &pair);
  for (uint32_t i = 0; i < 2; i++) napi_set_element(env, pair, i, thinfs_number(env, sockets[i]));
  return pair;
}

/*
 * socket_receive_descriptor(socket): the descriptor in the next message, closed on exec and
 * non-blocking; -1 when the other end closed without sending one.
 */
static napi_value socket_receive_descriptor(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  int socket, fd;
  char byte;
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec vector = {.iov_base = &byte, .iov_len = 1};
  struct msghdr message = {.msg_iov = &vector,
                           .msg_iovlen = 1,
                           .msg_control = control.bytes,
                           .msg_controllen = sizeof control.bytes};
  ssize_t got;
  if (!thinfs_arguments(env, info, 1, arguments) || !thinfs_int(env, arguments[0], &socket))
    return NULL;
  do {
    got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return thinfs_throw(env, errno, "recvmsg");
  struct cmsghdr *header = got == 0 ? NULL : CMSG_FIRSTHDR(&message);
  if (header == NULL || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
    return thinfs_number(env, -1);
  memcpy(&fd, CMSG_DATA(header), sizeof fd);
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
    int error = errno;
    close(fd);
    return thinfs_throw(env, error, "fcntl");
  }
  return thinfs_number(env, fd);
}

bool thinfs_mount_exports(napi_env env, napi_value exports) {
  static const thinfs_export functions[] = {
      {"mount_attach", mount_attach},
      {"socket_pair", socket_pair},
      {"socket_receive_descriptor", socket_receive_descriptor},
  };
  return thinfs_exports(env, exports, functions, sizeof functions / sizeof *functions);
}
