/* Access to the shared state. Readers never lock: a process that is stopped while it holds the lock must not stop NVML. */
#define _GNU_SOURCE
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t threads = PTHREAD_MUTEX_INITIALIZER;
static struct state *mapped;
static int lock_fd = -1;
static pid_t lock_pid;

static struct state *map(const char *path)
{
    struct stat file;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    struct state *state = NULL;
    if (fstat(fd, &file) == 0 && file.st_size >= (off_t)sizeof(struct state)) {
        state = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (state == MAP_FAILED)
            state = NULL;
    }
    close(fd);
    if (state && (state->magic != FAKE_GPU_MAGIC || state->version != FAKE_GPU_VERSION || state->size != sizeof *state)) {
        fprintf(stderr, "fake GPU: %s is of another version than this library\n", path);
        munmap(state, sizeof *state);
        state = NULL;
    }
    return state;
}

struct state *fake_gpu(void)
{
    pthread_mutex_lock(&opening);
    const char *path = getenv("GLMTTS_FAKE_GPU");
    if (!mapped && path)
        mapped = map(path);
    pthread_mutex_unlock(&opening);
    return mapped;
}

void fake_gpu_lock(void)
{
    pthread_mutex_lock(&threads);
    /* The lock belongs to the open file, which a forked child shares with its parent. */
    if (lock_pid != getpid()) {
        if (lock_fd >= 0)
            close(lock_fd);
        lock_fd = open(getenv("GLMTTS_FAKE_GPU"), O_RDWR | O_CLOEXEC);
        lock_pid = getpid();
    }
    while (flock(lock_fd, LOCK_EX) < 0 && errno == EINTR)
        ;
}

void fake_gpu_unlock(void)
{
    flock(lock_fd, LOCK_UN);
    pthread_mutex_unlock(&threads);
}

uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void sleep_ms(uint32_t ms)
{
    struct timespec left = {ms / 1000, (long)(ms % 1000) * 1000000};
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

static int matches(const char *pattern, const char *function)
{
    size_t length = strlen(pattern);
    if (length && pattern[length - 1] == '*')
        return strncmp(pattern, function, length - 1) == 0;
    return strcmp(pattern, function) == 0;
}

int fake_gpu_fault(const char *function, int device)
{
    struct state *state = fake_gpu();
    int code = 0;
    for (int i = 0; state && i < FAULTS; i++) {
        struct fault *fault = &state->faults[i];
        uint32_t active = atomic_load(&fault->active);
        if (!active || (fault->device >= 0 && fault->device != device) || !matches(fault->function, function))
            continue;
        uint32_t left = atomic_load(&fault->left);
        do {
            if (left == 0)
                break;
        } while (left != FOREVER && !atomic_compare_exchange_weak(&fault->left, &left, left - 1));
        if (left == 0)
            continue;
        int wanted = fault->code;
        uint64_t end = now_ms() + fault->delay_ms;
        atomic_fetch_add(&fault->inside, 1);
        atomic_fetch_add(&fault->hits, 1);
        /* In naps, so that taking the fault away ends the pause. */
        while (now_ms() < end && atomic_load(&fault->active) == active)
            sleep_ms(2);
        atomic_fetch_sub(&fault->inside, 1);
        if (!code)
            code = wanted;
    }
    return code;
}

uint64_t started_of(uint32_t pid)
{
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return 0;
    text[length] = 0;
    /* The name in brackets may hold anything; after it come the state, field 3, and in field 22 the start time. */
    char *at = strrchr(text, ')');
    if (!at || at[1] != ' ' || at[2] == 'Z' || at[2] == 'X')
        return 0;
    at += 2;
    for (int field = 3; field < 22 && at; field++) {
        at = strchr(at, ' ');
        if (at)
            at++;
    }
    return at ? strtoull(at, NULL, 10) : 0;
}

int holds(struct state *state, struct holder *holder, int *alive)
{
    uint64_t fate = atomic_load(&holder->fate);
    uint32_t pid = atomic_load(&holder->pid);
    *alive = 0;
    if (!pid)
        return 0;
    if (fate & ALIVE) {
        if (started_of(pid) == holder->started) {
            *alive = 1;
            return 1;
        }
        uint64_t died_ms = now_ms();
        if (atomic_compare_exchange_strong(&holder->fate, &fate, died_ms))
            fate = died_ms;
        else if (fate & ALIVE)
            return 0; /* the entry is another process's by now */
    }
    return now_ms() < fate + state->release_delay_ms;
}

uint64_t used_of(struct state *state, unsigned unit)
{
    unsigned first = unit, last = unit;
    if (unit % UNITS_PER_DEVICE == 0)
        last = unit + UNITS_PER_DEVICE - 1;
    uint64_t used = 0;
    for (unsigned i = first; i <= last; i++)
        if (state->units[i].present)
            used += state->units[i].unseen;
    for (int i = 0; i < FOREIGNERS; i++) {
        struct foreigner *foreigner = &state->foreigners[i];
        if (atomic_load(&foreigner->pid) && foreigner->unit >= first && foreigner->unit <= last)
            used += foreigner->bytes;
    }
    for (int i = 0; i < HOLDERS; i++) {
        struct holder *holder = &state->holders[i];
        int alive;
        if (atomic_load(&holder->pid) && holder->unit >= first && holder->unit <= last && holds(state, holder, &alive))
            used += atomic_load(&holder->bytes);
    }
    return used;
}
