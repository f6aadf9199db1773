/*
 * A network between the clients and the server of a unix socket: what either side sends arrives
 * later by a fixed time, in order, at whatever rate. A process serves each connection.
 *
 * usage: distance LISTEN SERVER MICROSECONDS
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* What is under way in one direction: 16 MiB, far more than arrives in a millisecond. */
#define NR_CHUNKS 128
#define CHUNK_SIZE (128 << 10)

struct chunk {
  int64_t due; /* nanoseconds */
  size_t begin, end;
  char bytes[CHUNK_SIZE];
};

struct direction {
  int from, to;
  unsigned taken, given; /* chunks, since the beginning */
  struct chunk *chunks;
};

static int64_t delay; /* nanoseconds */

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static struct chunk *chunk_at(struct direction *way, unsigned nr) {
  return &way->chunks[nr % NR_CHUNKS];
}

/* Takes what the sender has sent; false at its end. */
static int take(struct direction *way) {
  struct chunk *chunk = chunk_at(way, way->taken);
  ssize_t length = read(way->from, chunk->bytes, CHUNK_SIZE);
  if (length < 0) return errno == EAGAIN;
  if (length == 0) return 0;
  chunk->due = now() + delay;
  chunk->begin = 0;
  chunk->end = length;
  way->taken++;
  return 1;
}

/* Gives the receiver all that is due; false when it has gone. */
static int give(struct direction *way) {
  while (way->given != way->taken) {
    struct chunk *chunk = chunk_at(way, way->given);
    if (chunk->due > now()) return 1;
    ssize_t length = write(way->to, chunk->bytes + chunk->begin, chunk->end - chunk->begin);
    if (length < 0) return errno == EAGAIN;
    chunk->begin += length;
    if (chunk->begin == chunk->end) way->given++;
  }
  return 1;
}

static void relay(int client, int server) {
  struct direction ways[] = {{.from = client, .to = server}, {.from = server, .to = client}};
  fcntl(client, F_SETFL, O_NONBLOCK);
  fcntl(server, F_SETFL, O_NONBLOCK);
  prctl(PR_SET_TIMERSLACK, 1);
  for (int i = 0; i < 2; i++) {
    ways[i].chunks = malloc(NR_CHUNKS * sizeof(struct chunk));
    if (!ways[i].chunks) fail("malloc");
  }
  for (;;) {
    struct pollfd polls[] = {{.fd = client}, {.fd = server}};
    int64_t time = now(), next = INT64_MAX;
    for (int i = 0; i < 2; i++) {
      struct direction *way = &ways[i];
      if (way->taken - way->given < NR_CHUNKS) polls[i].events |= POLLIN;
      if (way->given == way->taken) continue;
      int64_t due = chunk_at(way, way->given)->due;
      if (due <= time) polls[1 - i].events |= POLLOUT;
      else if (due < next) next = due;
    }
    int64_t wait = next - time;
    struct timespec timeout = {wait / 1000000000, wait % 1000000000};
    if (ppoll(polls, 2, next == INT64_MAX ? NULL : &timeout, NULL) < 0) fail("ppoll");
    for (int i = 0; i < 2; i++) {
      if (polls[i].revents & (POLLIN | POLLHUP) && polls[i].events & POLLIN && !take(&ways[i])) return;
      if (!give(&ways[i])) return;
    }
  }
}

static int unix_socket(const char *path, struct sockaddr_un *address) {
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof(address->sun_path)) {
    fprintf(stderr, "%s: too long for a socket\n", path);
    exit(1);
  }
  strcpy(address->sun_path, path);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  return fd;
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: distance LISTEN SERVER MICROSECONDS\n");
    return 2;
  }
  delay = atoll(argv[3]) * 1000;
  signal(SIGCHLD, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  /* All end with whoever has started this. */
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  struct sockaddr_un address;
  int listener = unix_socket(argv[1], &address);
  if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 64))
    fail(argv[1]);
  for (;;) {
    int client = accept(listener, NULL, NULL);
    if (client < 0) fail("accept");
    if (fork() == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      int server = unix_socket(argv[2], &address);
      if (connect(server, (struct sockaddr *)&address, sizeof(address))) fail(argv[2]);
      relay(client, server);
      return 0;
    }
    close(client);
  }
}
