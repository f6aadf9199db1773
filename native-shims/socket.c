/*
 * Unix sockets: who is at the other end, and descriptors that are handed from process to process.
 */
#define _GNU_SOURCE
#include "napi.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/*
 * socket_peer_uid(socket): the user id with which the other end connected or listened
 * (SO_PEERCRED).
 */
static napi_value socket_peer_uid(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  int socket;
  struct ucred peer;
  socklen_t size = sizeof peer;
  if (!thinfs_arguments(env, info, 1, arguments) || !thinfs_int(env, arguments[0], &socket))
    return NULL;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
    return thinfs_throw(env, errno, "getsockopt");
  return thinfs_number(env, peer.uid);
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

/* The address `path`, which is at most 107 bytes. False after throwing. */
static bool socket_address(napi_env env, napi_value path, struct sockaddr_un *address) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  return thinfs_string(env, path, address->sun_path, sizeof address->sun_path);
}

/* socket_bind(path): a datagram socket that others send to by its path, closed on exec. */
static napi_value socket_bind(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  struct sockaddr_un address;
  if (!thinfs_arguments(env, info, 1, arguments) || !socket_address(env, arguments[0], &address))
    return NULL;
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return thinfs_throw(env, errno, "socket");
  /* The mode of the socket is that of its descriptor, as the mask leaves it. */
  if (fchmod(fd, 0600) != 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0) {
    int error = errno;
    close(fd);
    return thinfs_throw(env, error, "bind");
  }
  return thinfs_number(env, fd);
}

/* socket_send_descriptor(path, fd): sends a descriptor to the datagram socket at `path`. */
static napi_value socket_send_descriptor(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  struct sockaddr_un address;
  int fd;
  char byte = 0;
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control = {.bytes = {0}};
  struct iovec vector = {.iov_base = &byte, .iov_len = 1};
  struct msghdr message = {.msg_name = &address,
                           .msg_namelen = sizeof address,
                           .msg_iov = &vector,
                           .msg_iovlen = 1,
                           .msg_control = control.bytes,
                           .msg_controllen = sizeof control.bytes};
  if (!thinfs_arguments(env, info, 2, arguments) || !socket_address(env, arguments[0], &address) ||
      !thinfs_int(env, arguments[1], &fd))
    return NULL;
  control.header.cmsg_level = SOL_SOCKET;
  control.header.cmsg_type = SCM_RIGHTS;
  control.header.cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
  int sender = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (sender < 0) return thinfs_throw(env, errno, "socket");
  ssize_t sent = sendmsg(sender, &message, MSG_DONTWAIT);
  int error = errno;
  close(sender);
  if (sent < 0) return thinfs_throw(env, error, "sendmsg");
  return NULL;
}

/*
 * socket_send_text(path, text): one datagram of at most 1023 bytes to the socket at `path`, or,
 * where that begins with `@`, of that name in the abstract namespace. EAGAIN after 2 s without room
 * there.
 */
static napi_value socket_send_text(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  struct sockaddr_un address;
  struct timeval patience = {.tv_sec = 2};
  char text[1024];
  if (!thinfs_arguments(env, info, 2, arguments) || !socket_address(env, arguments[0], &address) ||
      !thinfs_string(env, arguments[1], text, sizeof text))
    return NULL;
  /* The length counts in an abstract name, which no NUL ends. */
  socklen_t length = offsetof(struct sockaddr_un, sun_path) + strlen(address.sun_path);
  if (address.sun_path[0] == '@') address.sun_path[0] = 0;
  int sender = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (sender < 0) return thinfs_throw(env, errno, "socket");
  setsockopt(sender, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  ssize_t sent =
      sendto(sender, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&address, length);
  int error = errno;
  close(sender);
  if (sent < 0) return thinfs_throw(env, error, "sendto");
  return NULL;
}

/*
 * socket_receive_descriptor(socket): the descriptor in the message that waits, closed on exec and
 * non-blocking; -1 when the other end closed without sending one, EAGAIN when none has come.
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
    got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
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

bool thinfs_socket_exports(napi_env env, napi_value exports) {
  static const thinfs_export functions[] = {
      {"socket_bind", socket_bind},
      {"socket_pair", socket_pair},
      {"socket_peer_uid", socket_peer_uid},
      {"socket_receive_descriptor", socket_receive_descriptor},
      {"socket_send_descriptor", socket_send_descriptor},
      {"socket_send_text", socket_send_text},
  };
  return thinfs_exports(env, exports, functions, sizeof functions / sizeof *functions);
}
