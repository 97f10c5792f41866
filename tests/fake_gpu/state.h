/* The GPUs that both fake libraries show: a file that every process maps, laid out as fake_gpu.py has it too. */
#ifndef FAKE_GPU_STATE_H
#define FAKE_GPU_STATE_H

#include <stdatomic.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

#define FAKE_GPU_MAGIC 0x47504655u
#define FAKE_GPU_VERSION 1u
#define FOREVER 0xFFFFFFFFu

enum { DEVICES = 16, UNITS_PER_DEVICE = 8, UNITS = DEVICES * UNITS_PER_DEVICE };
enum { FOREIGNERS = 64, HOLDERS = 1024, FAULTS = 32, EVENTS = 64 };

/* How NVML shows the memory of a GPU's processes. */
enum listing { AS_IT_IS, NOT_AVAILABLE, ZERO, UNLISTED, TWICE };

/* What has memory of its own: GPU n is unit 8n, its MIG instances are 8n + 1 to 8n + 7. */
struct unit {
    uint32_t present;
    uint32_t padding;
    uint64_t total;
    uint64_t reserved; /* by the driver: part of "used" in NVML's first memory structure, not in its second */
    uint64_t unseen;   /* taken by nobody in sight: a process in another container, say */
    char uuid[96];
    char name[96];
};

struct device {
    int32_t mig; /* -1: not supported, 0: off, 1: on */
    uint32_t listing;
    uint32_t utilization;
    uint32_t memory_utilization;
    uint32_t temperature;
    uint32_t power_mw;
    uint32_t persistence;
    uint32_t compute_mode;
};

/* A process that is not ours: it is believed to live. */
struct foreigner {
    _Atomic uint32_t pid;
    uint32_t unit;
    uint64_t bytes;
    uint32_t graphics;
    uint32_t padding;
};

/* What one process has of one unit through the fake CUDA driver. */
struct holder {
    _Atomic uint32_t pid; /* 0: free; written last */
    uint32_t unit;
    uint64_t started; /* clock ticks since boot: tells a process from a later one with its pid */
    _Atomic uint64_t bytes;
    _Atomic uint64_t fate; /* ALIVE and a mark of the process, then when it was first seen to be dead, in ms */
};

/* Nobody locks to say that a process is dead, so a fate is replaced only where it is still that process's own. */
#define ALIVE (1ull << 63)
#define FATE_OF(pid, started) (ALIVE | ((started) << 22 ^ (pid)))

/* What calls of a function meet: a pause, then an error. */
struct fault {
    _Atomic uint32_t active; /* differs for each use of the entry; 0: free; written last */
    int32_t device;          /* -1: any */
    int32_t code;            /* 0: none */
    uint32_t delay_ms;
    _Atomic uint32_t left; /* so many more calls */
    _Atomic uint32_t hits;
    _Atomic uint32_t inside; /* calls that pause now */
    uint32_t padding;
    char function[64]; /* without _v2 and the like; a * at the end stands for any rest */
};

struct event {
    uint32_t device;
    uint32_t padding;
    uint64_t type;
    uint64_t data;
};

struct state {
    uint32_t magic;
    uint32_t version;
    uint32_t size;
    uint32_t device_count;
    uint64_t context_bytes; /* what a CUDA context takes */
    uint32_t release_delay_ms;
    uint32_t cuda_version;
    char driver_version[80];
    char nvml_version[80];
    _Atomic uint64_t event_count; /* ever; the last EVENTS of them are kept */
    struct device devices[DEVICES];
    struct unit units[UNITS];
    struct foreigner foreigners[FOREIGNERS];
    struct holder holders[HOLDERS];
    struct fault faults[FAULTS];
    struct event events[EVENTS];
};

/* The state that the environment names, mapped once; NULL without one. */
struct state *fake_gpu(void);

/* Serialises changes, between threads and processes. The kernel gives it back when its holder is killed. */
void fake_gpu_lock(void);
void fake_gpu_unlock(void);

/* Take the pause and return the error code that this call is to have. */
int fake_gpu_fault(const char *function, int device);

uint64_t now_ms(void);
void sleep_ms(uint32_t ms);
uint64_t started_of(uint32_t pid); /* 0: no such process, or a zombie */

/* Whether the memory of this holder is still taken; *alive tells whether by a living process. */
int holds(struct state *state, struct holder *holder, int *alive);
/* Taken of a unit, or with its instances of a whole GPU; what the driver reserves is not in it. */
uint64_t used_of(struct state *state, unsigned unit);

#endif
