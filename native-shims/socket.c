/* Who is at the other end of a unix socket. */
#define _GNU_SOURCE
#include "napi.h"

#include <errno.h>
#include <sys/socket.h>

/* socket_peer_uid(socket): the user id with which the other end connected or listened (SO_PEERCRED). */
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

bool thinfs_socket_exports(napi_env env, napi_value exports) {
  static const thinfs_export functions[] = {{"socket_peer_uid", socket_peer_uid}};
  return thinfs_exports(env, exports, functions, sizeof functions / sizeof *functions);
}
