/* libnvidia-ml.so.1 without a GPU: the functions that pynvml calls, answered from the shared state. */
#define _GNU_SOURCE
#include "state.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of nvml.h. */
enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
    RESET_REQUIRED = 16,
    LIB_RM_VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25,
};
#define VALUE_NOT_AVAILABLE 0xFFFFFFFFFFFFFFFFull
#define NO_INSTANCE 0xFFFFFFFFu
#define MEMORY_V2 0x02000028u
#define TEMPERATURE_V1 0x0100000Cu
#define EVENT_XID 8ull

typedef void *device_t;

struct pci_info {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
};
struct memory_v1 {
    unsigned long long total, free, used;
};
struct memory_v2 {
    unsigned version;
    unsigned long long total, reserved, free, used;
};
struct utilization {
    unsigned gpu, memory;
};
struct temperature {
    unsigned version, sensor;
    int temperature;
};
struct process_v1 {
    unsigned pid;
    unsigned long long used;
};
struct process_v2 {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
};
struct event_data {
    device_t device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
};
struct event_set {
    uint64_t seen;
    uint64_t types[DEVICES];
};

static _Atomic int initialised;
/* A handle is an address in here. */
static char handles[UNITS];

static int unit_of(device_t handle)
{
    char *at = handle;
    if (at < handles || at >= handles + UNITS || !fake_gpu()->units[at - handles].present)
        return -1;
    return (int)(at - handles);
}

#define SYSTEM(function)                                                                                               \
    struct state *state = fake_gpu();                                                                                  \
    if (!state || !atomic_load(&initialised))                                                                          \
        return UNINITIALIZED;                                                                                          \
    do {                                                                                                               \
        int fault = fake_gpu_fault(function, -1);                                                                      \
        if (fault)                                                                                                     \
            return fault;                                                                                              \
    } while (0)

#define DEVICE(function)                                                                                               \
    struct state *state = fake_gpu();                                                                                  \
    if (!state || !atomic_load(&initialised))                                                                          \
        return UNINITIALIZED;                                                                                          \
    int unit = unit_of(handle);                                                                                        \
    if (unit < 0)                                                                                                      \
        return INVALID_ARGUMENT;                                                                                       \
    struct device *device = &state->devices[unit / UNITS_PER_DEVICE];                                                  \
    int is_instance = unit % UNITS_PER_DEVICE != 0;                                                                    \
    (void)device, (void)is_instance;                                                                                   \
    do {                                                                                                               \
        int fault = fake_gpu_fault(function, unit / UNITS_PER_DEVICE);                                                 \
        if (fault)                                                                                                     \
            return fault;                                                                                              \
    } while (0)

static int copy(char *to, unsigned size, const char *from)
{
    if (strlen(from) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

/* --- the library */

EXPORT int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    if (!fake_gpu())
        return DRIVER_NOT_LOADED;
    int fault = fake_gpu_fault("nvmlInit", -1);
    if (!fault)
        atomic_fetch_add(&initialised, 1);
    return fault;
}
EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlInit(void) { return nvmlInitWithFlags(0); }

EXPORT int nvmlShutdown(void)
{
    SYSTEM("nvmlShutdown");
    atomic_fetch_sub(&initialised, 1);
    return SUCCESS;
}

EXPORT const char *nvmlErrorString(int code)
{
    switch (code) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case TIMEOUT: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    case RESET_REQUIRED: return "GPU requires reset";
    case LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    case ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    default: return "Unknown Error";
    }
}

EXPORT int nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    SYSTEM("nvmlSystemGetDriverVersion");
    return copy(version, length, state->driver_version);
}

EXPORT int nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
    SYSTEM("nvmlSystemGetNVMLVersion");
    return copy(version, length, state->nvml_version);
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    SYSTEM("nvmlSystemGetCudaDriverVersion");
    *version = (int)state->cuda_version;
    return SUCCESS;
}
EXPORT int nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

/* --- devices */

EXPORT int nvmlDeviceGetCount_v2(unsigned *count)
{
    SYSTEM("nvmlDeviceGetCount");
    *count = state->device_count;
    return SUCCESS;
}
EXPORT int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *found)
{
    struct state *state = fake_gpu();
    if (!state || !atomic_load(&initialised))
        return UNINITIALIZED;
    if (index >= state->device_count)
        return INVALID_ARGUMENT;
    int fault = fake_gpu_fault("nvmlDeviceGetHandleByIndex", (int)index);
    *found = &handles[index * UNITS_PER_DEVICE];
    return fault;
}
EXPORT int nvmlDeviceGetHandleByIndex(unsigned index, device_t *found)
{
    return nvmlDeviceGetHandleByIndex_v2(index, found);
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, device_t *found)
{
    struct state *state = fake_gpu();
    if (!state || !atomic_load(&initialised))
        return UNINITIALIZED;
    for (int i = 0; i < UNITS; i++)
        if (state->units[i].present && strcmp(state->units[i].uuid, uuid) == 0) {
            *found = &handles[i];
            return fake_gpu_fault("nvmlDeviceGetHandleByUUID", i / UNITS_PER_DEVICE);
        }
    return NOT_FOUND;
}

static void bus_id(char *to, size_t size, const char *format, int unit)
{
    snprintf(to, size, format, 0u, (unsigned)(unit / UNITS_PER_DEVICE) + 1);
}

EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *id, device_t *found)
{
    SYSTEM("nvmlDeviceGetHandleByPciBusId");
    for (unsigned i = 0; i < state->device_count; i++) {
        char own[32], legacy[32];
        bus_id(own, sizeof own, "%08X:%02X:00.0", (int)(i * UNITS_PER_DEVICE));
        bus_id(legacy, sizeof legacy, "%04X:%02X:00.0", (int)(i * UNITS_PER_DEVICE));
        if (strcasecmp(id, own) == 0 || strcasecmp(id, legacy) == 0) {
            *found = &handles[i * UNITS_PER_DEVICE];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

EXPORT int nvmlDeviceGetUUID(device_t handle, char *uuid, unsigned length)
{
    DEVICE("nvmlDeviceGetUUID");
    return copy(uuid, length, state->units[unit].uuid);
}

EXPORT int nvmlDeviceGetName(device_t handle, char *name, unsigned length)
{
    DEVICE("nvmlDeviceGetName");
    return copy(name, length, state->units[unit].name);
}

EXPORT int nvmlDeviceGetIndex(device_t handle, unsigned *index)
{
    DEVICE("nvmlDeviceGetIndex");
    *index = (unsigned)(is_instance ? unit % UNITS_PER_DEVICE - 1 : unit / UNITS_PER_DEVICE);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMinorNumber(device_t handle, unsigned *number)
{
    DEVICE("nvmlDeviceGetMinorNumber");
    if (is_instance)
        return NOT_SUPPORTED;
    *number = (unsigned)(unit / UNITS_PER_DEVICE);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetPciInfo_v3(device_t handle, struct pci_info *info)
{
    DEVICE("nvmlDeviceGetPciInfo");
    memset(info, 0, sizeof *info);
    info->bus = (unsigned)(unit / UNITS_PER_DEVICE) + 1;
    info->pci_device_id = 0x20B010DEu;
    bus_id(info->bus_id, sizeof info->bus_id, "%08X:%02X:00.0", unit);
    bus_id(info->bus_id_legacy, sizeof info->bus_id_legacy, "%04X:%02X:00.0", unit);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo(device_t handle, struct memory_v1 *memory)
{
    DEVICE("nvmlDeviceGetMemoryInfo");
    memory->total = state->units[unit].total;
    memory->used = state->units[unit].reserved + used_of(state, (unsigned)unit);
    memory->free = memory->used < memory->total ? memory->total - memory->used : 0;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(device_t handle, struct memory_v2 *memory)
{
    struct memory_v1 first;
    if (memory->version != MEMORY_V2)
        return ARGUMENT_VERSION_MISMATCH;
    int code = nvmlDeviceGetMemoryInfo(handle, &first);
    if (code)
        return code;
    memory->total = first.total;
    memory->free = first.free;
    memory->reserved = fake_gpu()->units[unit_of(handle)].reserved;
    memory->used = first.used - memory->reserved;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetUtilizationRates(device_t handle, struct utilization *rates)
{
    DEVICE("nvmlDeviceGetUtilizationRates");
    if (device->mig == 1)
        return NOT_SUPPORTED;
    rates->gpu = device->utilization;
    rates->memory = device->memory_utilization;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetTemperature(device_t handle, int sensor, unsigned *degrees)
{
    DEVICE("nvmlDeviceGetTemperature");
    if (is_instance || sensor != 0)
        return is_instance ? NOT_SUPPORTED : INVALID_ARGUMENT;
    *degrees = device->temperature;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetTemperatureV(device_t handle, struct temperature *temperature)
{
    unsigned degrees = 0;
    if (temperature->version != TEMPERATURE_V1)
        return ARGUMENT_VERSION_MISMATCH;
    int code = nvmlDeviceGetTemperature(handle, (int)temperature->sensor, &degrees);
    temperature->temperature = (int)degrees;
    return code;
}

EXPORT int nvmlDeviceGetPowerUsage(device_t handle, unsigned *milliwatts)
{
    DEVICE("nvmlDeviceGetPowerUsage");
    if (is_instance)
        return NOT_SUPPORTED;
    *milliwatts = device->power_mw;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetPersistenceMode(device_t handle, unsigned *mode)
{
    DEVICE("nvmlDeviceGetPersistenceMode");
    *mode = device->persistence;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetComputeMode(device_t handle, unsigned *mode)
{
    DEVICE("nvmlDeviceGetComputeMode");
    *mode = device->compute_mode;
    return SUCCESS;
}

/* --- MIG */

EXPORT int nvmlDeviceGetMigMode(device_t handle, unsigned *current, unsigned *pending)
{
    DEVICE("nvmlDeviceGetMigMode");
    if (device->mig < 0 || is_instance)
        return NOT_SUPPORTED;
    *current = *pending = (unsigned)device->mig;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMaxMigDeviceCount(device_t handle, unsigned *count)
{
    DEVICE("nvmlDeviceGetMaxMigDeviceCount");
    *count = device->mig < 0 ? 0 : UNITS_PER_DEVICE - 1;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(device_t handle, unsigned index, device_t *found)
{
    DEVICE("nvmlDeviceGetMigDeviceHandleByIndex");
    if (is_instance || device->mig < 0)
        return is_instance ? INVALID_ARGUMENT : NOT_SUPPORTED;
    if (index >= UNITS_PER_DEVICE - 1)
        return INVALID_ARGUMENT;
    if (device->mig != 1 || !state->units[(unsigned)unit + 1 + index].present)
        return NOT_FOUND;
    *found = &handles[(unsigned)unit + 1 + index];
    return SUCCESS;
}

EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t handle, device_t *found)
{
    DEVICE("nvmlDeviceGetDeviceHandleFromMigDeviceHandle");
    if (!is_instance)
        return INVALID_ARGUMENT;
    *found = &handles[unit - unit % UNITS_PER_DEVICE];
    return SUCCESS;
}

EXPORT int nvmlDeviceIsMigDeviceHandle(device_t handle, unsigned *is)
{
    DEVICE("nvmlDeviceIsMigDeviceHandle");
    *is = (unsigned)is_instance;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetGpuInstanceId(device_t handle, unsigned *id)
{
    DEVICE("nvmlDeviceGetGpuInstanceId");
    *id = (unsigned)(unit % UNITS_PER_DEVICE);
    return is_instance ? SUCCESS : NOT_SUPPORTED;
}

EXPORT int nvmlDeviceGetComputeInstanceId(device_t handle, unsigned *id)
{
    DEVICE("nvmlDeviceGetComputeInstanceId");
    *id = 0;
    return is_instance ? SUCCESS : NOT_SUPPORTED;
}

/* --- processes */

/* Collects into a caller's array of `room` entries, as the first or as the second version of the structure. */
struct list {
    unsigned count, room;
    struct process_v1 *v1;
    struct process_v2 *v2;
};

static void add(struct list *list, enum listing listing, uint32_t pid, unsigned unit, uint64_t bytes)
{
    unsigned instance = unit % UNITS_PER_DEVICE;
    uint64_t shown = listing == NOT_AVAILABLE ? VALUE_NOT_AVAILABLE : listing == ZERO ? 0 : bytes;
    for (int times = listing == TWICE ? 2 : listing == UNLISTED ? 0 : 1; times; times--) {
        if (list->count < list->room && list->v1)
            list->v1[list->count] = (struct process_v1){pid, shown};
        if (list->count < list->room && list->v2)
            list->v2[list->count] =
                (struct process_v2){pid, shown, instance ? instance : NO_INSTANCE, instance ? 0 : NO_INSTANCE};
        list->count++;
    }
}

static int list_processes(struct state *state, int unit, int graphics, unsigned *count, void *v1, void *v2)
{
    struct list list = {0, v1 || v2 ? *count : 0, v1, v2};
    int whole = unit % UNITS_PER_DEVICE == 0;
    enum listing listing = state->devices[unit / UNITS_PER_DEVICE].listing;
    for (int i = 0; i < HOLDERS && !graphics; i++) {
        struct holder *holder = &state->holders[i];
        int same = whole ? (int)holder->unit / UNITS_PER_DEVICE == unit / UNITS_PER_DEVICE : (int)holder->unit == unit;
        int alive;
        if (atomic_load(&holder->pid) && same && holds(state, holder, &alive) && alive && atomic_load(&holder->bytes))
            add(&list, listing, atomic_load(&holder->pid), holder->unit, atomic_load(&holder->bytes));
    }
    for (int i = 0; i < FOREIGNERS; i++) {
        struct foreigner *other = &state->foreigners[i];
        int same = whole ? (int)other->unit / UNITS_PER_DEVICE == unit / UNITS_PER_DEVICE : (int)other->unit == unit;
        uint32_t pid = atomic_load(&other->pid);
        if (pid && same && (int)other->graphics == graphics)
            add(&list, listing, pid, other->unit, other->bytes);
    }
    *count = list.count;
    return list.count > list.room ? INSUFFICIENT_SIZE : SUCCESS;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses(device_t handle, unsigned *count, struct process_v1 *infos)
{
    DEVICE("nvmlDeviceGetComputeRunningProcesses");
    return list_processes(state, unit, 0, count, infos, NULL);
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(device_t handle, unsigned *count, struct process_v2 *infos)
{
    DEVICE("nvmlDeviceGetComputeRunningProcesses");
    return list_processes(state, unit, 0, count, NULL, infos);
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v2(device_t handle, unsigned *count, struct process_v2 *infos)
{
    return nvmlDeviceGetComputeRunningProcesses_v3(handle, count, infos);
}

EXPORT int nvmlDeviceGetGraphicsRunningProcesses(device_t handle, unsigned *count, struct process_v1 *infos)
{
    DEVICE("nvmlDeviceGetGraphicsRunningProcesses");
    return list_processes(state, unit, 1, count, infos, NULL);
}
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t handle, unsigned *count, struct process_v2 *infos)
{
    DEVICE("nvmlDeviceGetGraphicsRunningProcesses");
    return list_processes(state, unit, 1, count, NULL, infos);
}
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v2(device_t handle, unsigned *count, struct process_v2 *infos)
{
    return nvmlDeviceGetGraphicsRunningProcesses_v3(handle, count, infos);
}

/* Nobody shares the fake GPUs through MPS. */
EXPORT int nvmlDeviceGetMPSComputeRunningProcesses_v3(device_t handle, unsigned *count, struct process_v2 *infos)
{
    DEVICE("nvmlDeviceGetMPSComputeRunningProcesses");
    (void)infos;
    *count = 0;
    return SUCCESS;
}
EXPORT int nvmlDeviceGetMPSComputeRunningProcesses_v2(device_t handle, unsigned *count, struct process_v2 *infos)
{
    return nvmlDeviceGetMPSComputeRunningProcesses_v3(handle, count, infos);
}

/* --- events */

EXPORT int nvmlEventSetCreate(struct event_set **set)
{
    SYSTEM("nvmlEventSetCreate");
    *set = calloc(1, sizeof **set);
    (*set)->seen = atomic_load(&state->event_count);
    return SUCCESS;
}

EXPORT int nvmlEventSetFree(struct event_set *set)
{
    free(set);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetSupportedEventTypes(device_t handle, unsigned long long *types)
{
    DEVICE("nvmlDeviceGetSupportedEventTypes");
    *types = EVENT_XID;
    return SUCCESS;
}

EXPORT int nvmlDeviceRegisterEvents(device_t handle, unsigned long long types, struct event_set *set)
{
    DEVICE("nvmlDeviceRegisterEvents");
    if (is_instance || types & ~EVENT_XID)
        return NOT_SUPPORTED;
    set->types[unit / UNITS_PER_DEVICE] |= types;
    return SUCCESS;
}

EXPORT int nvmlEventSetWait_v2(struct event_set *set, struct event_data *data, unsigned timeout_ms)
{
    SYSTEM("nvmlEventSetWait");
    uint64_t end = now_ms() + timeout_ms;
    for (;;) {
        while (set->seen < atomic_load(&state->event_count)) {
            struct event event = state->events[set->seen++ % EVENTS];
            if (event.device < DEVICES && set->types[event.device] & event.type) {
                *data = (struct event_data){&handles[event.device * UNITS_PER_DEVICE], event.type, event.data,
                                            NO_INSTANCE, NO_INSTANCE};
                return SUCCESS;
            }
        }
        if (now_ms() >= end)
            return TIMEOUT;
        sleep_ms(2);
    }
}
EXPORT int nvmlEventSetWait(struct event_set *set, struct event_data *data, unsigned timeout_ms)
{
    return nvmlEventSetWait_v2(set, data, timeout_ms);
}
