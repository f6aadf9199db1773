/*
 * Asks device-mapper as libdevmapper does, without starting a program for each call, and prints
 * what it took: lines of a name and a number, times in milliseconds.
 *
 *   dm-client ioctls DEVICE TIMES    calls that change nothing: the median of each
 *   dm-client create POOL COUNT      makes thin devices: the medians of the first tenth and of the last
 *   dm-client remove POOL COUNT      lists them, and removes them
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#define SIZE (256 * 1024)
static char buffer[SIZE] __attribute__((aligned(8)));
static struct dm_ioctl *const dm = (struct dm_ioctl *)buffer;
static int control;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void prepare(const char *name, unsigned flags) {
  memset(buffer, 0, 4096);
  dm->version[0] = DM_VERSION_MAJOR;
  dm->data_size = SIZE;
  dm->data_start = sizeof *dm;
  dm->flags = flags;
  snprintf(dm->name, sizeof dm->name, "%s", name);
}

static void call(unsigned long command, const char *what) {
  if (ioctl(control, command, dm) == 0) return;
  fprintf(stderr, "%s %s: %s\n", what, dm->name, strerror(errno));
  exit(1);
}

static int compare(const void *a, const void *b) {
  double difference = *(const double *)a - *(const double *)b;
  return (difference > 0) - (difference < 0);
}

static double median(const double *times, int count) {
  double *sorted = malloc(count * sizeof *sorted);
  memcpy(sorted, times, count * sizeof *sorted);
  qsort(sorted, count, sizeof *sorted, compare);
  double middle = sorted[count / 2];
  free(sorted);
  return middle;
}

static void time_ioctl(const char *label, const char *name, unsigned long command, unsigned flags,
                       int times) {
  double *taken = malloc(times * sizeof *taken);
  for (int i = 0; i < times; i++) {
    prepare(name, flags);
    double begin = now();
    call(command, label);
    taken[i] = now() - begin;
  }
  printf("%s %.4f\n", label, median(taken, times));
  free(taken);
}

static void message(const char *pool, const char *word, int id) {
  prepare(pool, 0);
  sprintf(((struct dm_target_msg *)(dm + 1))->message, "%s %d", word, id);
  call(DM_TARGET_MSG, word);
}

static void create(const char *pool, const char *name, int id) {
  message(pool, "create_thin", id);
  prepare(name, 0);
  call(DM_DEV_CREATE, "create");
  prepare(name, 0);
  struct dm_target_spec *spec = (struct dm_target_spec *)(dm + 1);
  spec->length = 2048;
  strcpy(spec->target_type, "thin");
  sprintf((char *)(spec + 1), "/dev/mapper/%s %d", pool, id);
  dm->target_count = 1;
  call(DM_TABLE_LOAD, "load");
  prepare(name, 0);
  call(DM_DEV_SUSPEND, "resume");
}

static void destroy(const char *pool, const char *name, int id) {
  prepare(name, 0);
  call(DM_DEV_REMOVE, "remove");
  message(pool, "delete", id);
}

static void time_devices(const char *pool, int count, void (*act)(const char *, const char *, int)) {
  double *taken = malloc(count * sizeof *taken);
  char name[64];
  for (int id = 0; id < count; id++) {
    sprintf(name, "bench-%d", id);
    double begin = now();
    act(pool, name, id);
    taken[id] = now() - begin;
  }
  int tenth = count / 10;
  printf("first %.4f\nlast %.4f\n", median(taken, tenth), median(taken + count - tenth, tenth));
  free(taken);
}

int main(int argc, char **argv) {
  const char *const usage = "usage: dm-client ioctls|create|remove NAME COUNT\n";
  if (argc != 4) return fputs(usage, stderr), 2;
  const char *name = argv[2];
  int count = atoi(argv[3]);
  control = open("/dev/mapper/control", O_RDWR);
  if (control < 0) return perror("/dev/mapper/control"), 1;
  if (strcmp(argv[1], "ioctls") == 0) {
    time_ioctl("version", "", DM_VERSION, 0, count);
    time_ioctl("info", name, DM_DEV_STATUS, 0, count);
    time_ioctl("table", name, DM_TABLE_STATUS, DM_STATUS_TABLE_FLAG, count);
    time_ioctl("status", name, DM_TABLE_STATUS, DM_NOFLUSH_FLAG, count);
  } else if (strcmp(argv[1], "create") == 0) {
    time_devices(name, count, create);
  } else if (strcmp(argv[1], "remove") == 0) {
    time_ioctl("list", "", DM_LIST_DEVICES, 0, 20);
    time_devices(name, count, destroy);
  } else {
    return fputs(usage, stderr), 2;
  }
  return 0;
}
