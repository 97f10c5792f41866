/* libcuda.so.1 without a GPU: the part of the driver API that takes memory and fails, booked in the shared state. */
#define _GNU_SOURCE
#include "state.h"

#include <ctype.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Of cuda.h. */
enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    UNKNOWN = 999,
};
/* The driver hands out pages of this size. */
#define PAGE (2ull << 20)
#define XID_ILLEGAL_ACCESS 31
#define EVENT_XID 8

struct block {
    struct block *next;
    uint64_t address, bytes;
    unsigned unit;
};
struct context {
    int ordinal;
    int retained;
};
struct function {
    struct function *next;
    char name[64];
};
struct module {
    struct function *functions;
};

static pthread_mutex_t own = PTHREAD_MUTEX_INITIALIZER;
static pid_t initialised_by;
static unsigned visible[UNITS];
static int visible_count;
static struct context contexts[UNITS];
static struct block *blocks;
static uint64_t next_address = 0x7f0000000000ull;
static int poisoned;
static __thread struct context *current;

static int choose(struct state *state, const char *name)
{
    char *end;
    if (isdigit((unsigned char)*name)) {
        unsigned long number = strtoul(name, &end, 10);
        if (*end || number >= state->device_count)
            return -1;
        unsigned unit = (unsigned)number * UNITS_PER_DEVICE;
        /* With MIG on there is no using the whole; CUDA then takes the first instance. */
        if (state->devices[number].mig == 1)
            return state->units[unit + 1].present ? (int)unit + 1 : -1;
        return (int)unit;
    }
    for (int i = 0; i < UNITS; i++)
        if (state->units[i].present && *name && strncmp(state->units[i].uuid, name, strlen(name)) == 0)
            return i;
    return -1;
}

static void find_visible(struct state *state)
{
    const char *wanted = getenv("CUDA_VISIBLE_DEVICES");
    visible_count = 0;
    if (!wanted) {
        for (unsigned i = 0; i < state->device_count; i++) {
            char number[12] = {(char)('0' + i / 10), (char)('0' + i % 10), 0};
            int unit = choose(state, number);
            if (unit >= 0)
                visible[visible_count++] = (unsigned)unit;
        }
        return;
    }
    char *names = strdup(wanted), *rest = names, *name;
    while ((name = strsep(&rest, ",")) && visible_count < UNITS) {
        int unit = choose(state, name);
        /* As CUDA has it: what stands behind an unknown name is not seen either. */
        if (unit < 0)
            break;
        visible[visible_count++] = (unsigned)unit;
    }
    free(names);
}

/* What every call begins with. A forked child may not use its parent's driver. */
static int enter(const char *function, int ordinal)
{
    if (poisoned)
        return ILLEGAL_ADDRESS;
    if (initialised_by != getpid())
        return NOT_INITIALIZED;
    int unit = ordinal >= 0 && ordinal < visible_count ? (int)visible[ordinal] : -UNITS_PER_DEVICE;
    return fake_gpu_fault(function, unit / UNITS_PER_DEVICE);
}
#define ENTER(function, ordinal)                                                                                       \
    do {                                                                                                               \
        int fault = enter(function, ordinal);                                                                          \
        if (fault)                                                                                                     \
            return fault;                                                                                              \
    } while (0)

/* ENTER for what works on the calling thread's context. */
#define ENTER_CONTEXT(function)                                                                                        \
    ENTER(function, current ? current->ordinal : -1);                                                                  \
    if (!current || !current->retained)                                                                                \
    return INVALID_CONTEXT

static struct holder *holder_of(struct state *state, unsigned unit)
{
    uint32_t pid = (uint32_t)getpid();
    uint64_t started = started_of(pid);
    struct holder *room = NULL;
    for (int i = 0; i < HOLDERS; i++) {
        struct holder *holder = &state->holders[i];
        int alive;
        if (!holds(state, holder, &alive)) {
            atomic_store(&holder->pid, 0);
            room = room ? room : holder;
        } else if (atomic_load(&holder->pid) == pid && holder->unit == unit && holder->started == started) {
            return holder;
        }
    }
    if (room) {
        room->unit = unit;
        room->started = started;
        atomic_store(&room->bytes, 0);
        atomic_store(&room->fate, FATE_OF((uint64_t)pid, started));
        atomic_store(&room->pid, pid);
    }
    return room;
}

static uint64_t free_of(struct state *state, unsigned unit)
{
    uint64_t taken = state->units[unit].reserved + used_of(state, unit);
    return taken < state->units[unit].total ? state->units[unit].total - taken : 0;
}

static int take(unsigned unit, uint64_t bytes)
{
    struct state *state = fake_gpu();
    fake_gpu_lock();
    struct holder *holder = holder_of(state, unit);
    int fits = holder && bytes <= free_of(state, unit);
    if (fits)
        atomic_fetch_add(&holder->bytes, bytes);
    fake_gpu_unlock();
    return fits ? SUCCESS : OUT_OF_MEMORY;
}

static void give_back(unsigned unit, uint64_t bytes)
{
    fake_gpu_lock();
    struct holder *holder = holder_of(fake_gpu(), unit);
    if (holder)
        atomic_fetch_sub(&holder->bytes, bytes);
    fake_gpu_unlock();
}

/* --- driver and devices */

EXPORT int cuInit(unsigned flags)
{
    struct state *state = fake_gpu();
    if (poisoned)
        return ILLEGAL_ADDRESS;
    if (flags)
        return INVALID_VALUE;
    if (!state)
        return NO_DEVICE;
    int fault = fake_gpu_fault("cuInit", -1);
    if (fault)
        return fault;
    pthread_mutex_lock(&own);
    if (initialised_by != getpid()) {
        int forked = initialised_by != 0;
        if (!forked) {
            find_visible(state);
            if (visible_count)
                initialised_by = getpid();
        }
        pthread_mutex_unlock(&own);
        return forked ? NOT_INITIALIZED : visible_count ? SUCCESS : NO_DEVICE;
    }
    pthread_mutex_unlock(&own);
    return SUCCESS;
}

EXPORT int cuDriverGetVersion(int *version)
{
    *version = fake_gpu() ? (int)fake_gpu()->cuda_version : 0;
    return SUCCESS;
}

EXPORT int cuDeviceGetCount(int *count)
{
    ENTER("cuDeviceGetCount", -1);
    *count = visible_count;
    return SUCCESS;
}

EXPORT int cuDeviceGet(int *device, int ordinal)
{
    ENTER("cuDeviceGet", ordinal);
    if (ordinal < 0 || ordinal >= visible_count)
        return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

EXPORT int cuDeviceGetName(char *name, int length, int device)
{
    ENTER("cuDeviceGetName", device);
    if (device < 0 || device >= visible_count || length < 1)
        return INVALID_DEVICE;
    strncpy(name, fake_gpu()->units[visible[device]].name, (size_t)length - 1);
    name[length - 1] = 0;
    return SUCCESS;
}

EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    ENTER("cuDeviceTotalMem", device);
    if (device < 0 || device >= visible_count)
        return INVALID_DEVICE;
    *bytes = fake_gpu()->units[visible[device]].total;
    return SUCCESS;
}

/* --- contexts */

EXPORT int cuDevicePrimaryCtxRetain(struct context **context, int device)
{
    ENTER("cuDevicePrimaryCtxRetain", device);
    if (device < 0 || device >= visible_count)
        return INVALID_DEVICE;
    int code = SUCCESS;
    pthread_mutex_lock(&own);
    contexts[device].ordinal = device;
    if (!contexts[device].retained)
        code = take(visible[device], fake_gpu()->context_bytes);
    if (!code)
        contexts[device].retained++;
    pthread_mutex_unlock(&own);
    *context = &contexts[device];
    return code;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device)
{
    ENTER("cuDevicePrimaryCtxRelease", device);
    if (device < 0 || device >= visible_count)
        return INVALID_DEVICE;
    pthread_mutex_lock(&own);
    int code = contexts[device].retained ? SUCCESS : INVALID_CONTEXT;
    if (!code && --contexts[device].retained == 0) {
        uint64_t bytes = fake_gpu()->context_bytes;
        for (struct block **at = &blocks; *at;) {
            struct block *block = *at;
            if (block->unit != visible[device]) {
                at = &block->next;
                continue;
            }
            bytes += block->bytes;
            *at = block->next;
            free(block);
        }
        give_back(visible[device], bytes);
    }
    pthread_mutex_unlock(&own);
    return code;
}
EXPORT int cuDevicePrimaryCtxRelease(int device) { return cuDevicePrimaryCtxRelease_v2(device); }

EXPORT int cuCtxSetCurrent(struct context *context)
{
    ENTER("cuCtxSetCurrent", context ? context->ordinal : -1);
    current = context;
    return SUCCESS;
}

EXPORT int cuCtxSynchronize(void)
{
    ENTER_CONTEXT("cuCtxSynchronize");
    return SUCCESS;
}

/* --- memory */

EXPORT int cuMemAlloc_v2(uint64_t *address, size_t bytes)
{
    ENTER_CONTEXT("cuMemAlloc");
    if (!bytes)
        return INVALID_VALUE;
    struct block *block = malloc(sizeof *block);
    block->bytes = (bytes + PAGE - 1) / PAGE * PAGE;
    block->unit = visible[current->ordinal];
    pthread_mutex_lock(&own);
    int code = bytes > block->bytes ? OUT_OF_MEMORY : take(block->unit, block->bytes);
    if (!code) {
        *address = block->address = next_address;
        /* A page between two blocks belongs to nobody. */
        next_address += block->bytes + PAGE;
        block->next = blocks;
        blocks = block;
    }
    pthread_mutex_unlock(&own);
    if (code)
        free(block);
    return code;
}

EXPORT int cuMemFree_v2(uint64_t address)
{
    ENTER_CONTEXT("cuMemFree");
    pthread_mutex_lock(&own);
    struct block **at = &blocks;
    while (*at && (*at)->address != address)
        at = &(*at)->next;
    struct block *block = *at;
    if (block) {
        *at = block->next;
        give_back(block->unit, block->bytes);
        free(block);
    }
    pthread_mutex_unlock(&own);
    return block || !address ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    ENTER_CONTEXT("cuMemGetInfo");
    unsigned unit = visible[current->ordinal];
    *free_bytes = free_of(fake_gpu(), unit);
    *total = fake_gpu()->units[unit].total;
    return SUCCESS;
}

/* --- kernels */

EXPORT int cuModuleLoadData(struct module **module, const void *image)
{
    ENTER_CONTEXT("cuModuleLoadData");
    const char *ptx = image;
    ptx += strspn(ptx, " \t\r\n");
    if (strncmp(ptx, ".version", 8) != 0)
        return INVALID_IMAGE;
    *module = calloc(1, sizeof **module);
    while ((ptx = strstr(ptx, ".entry"))) {
        ptx += strlen(".entry");
        ptx += strspn(ptx, " \t\r\n");
        struct function *function = calloc(1, sizeof *function);
        for (size_t i = 0; i + 1 < sizeof function->name; i++) {
            if (!isalnum((unsigned char)*ptx) && *ptx != '_' && *ptx != '$')
                break;
            function->name[i] = *ptx++;
        }
        function->next = (*module)->functions;
        (*module)->functions = function;
    }
    return SUCCESS;
}

EXPORT int cuModuleGetFunction(struct function **function, struct module *module, const char *name)
{
    ENTER_CONTEXT("cuModuleGetFunction");
    for (*function = module->functions; *function; *function = (*function)->next)
        if (strcmp((*function)->name, name) == 0)
            return SUCCESS;
    return NOT_FOUND;
}

/* Every kernel is taken for one that stores to the address in its first argument. */
EXPORT int cuLaunchKernel(struct function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream, void **arguments,
                          void **extra)
{
    (void)grid_x, (void)grid_y, (void)grid_z, (void)block_x, (void)block_y, (void)block_z;
    (void)shared_bytes, (void)stream, (void)extra;
    ENTER_CONTEXT("cuLaunchKernel");
    if (!function || !arguments || !arguments[0])
        return INVALID_VALUE;
    uint64_t address = *(uint64_t *)arguments[0];
    pthread_mutex_lock(&own);
    struct block *block = blocks;
    while (block && (address < block->address || address >= block->address + block->bytes))
        block = block->next;
    pthread_mutex_unlock(&own);
    if (!block) {
        struct state *state = fake_gpu();
        fake_gpu_lock();
        uint64_t count = atomic_load(&state->event_count);
        state->events[count % EVENTS] =
            (struct event){visible[current->ordinal] / UNITS_PER_DEVICE, 0, EVENT_XID, XID_ILLEGAL_ACCESS};
        atomic_store(&state->event_count, count + 1);
        fake_gpu_unlock();
        /* Kernels run later: the launch succeeds, and every call after it fails. */
        poisoned = 1;
    }
    return SUCCESS;
}

/* --- errors */

static const struct {
    int code;
    const char *name, *text;
} errors[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static int describe(int code, const char **to, int wants_text)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) {
            *to = wants_text ? errors[i].text : errors[i].name;
            return SUCCESS;
        }
    *to = NULL;
    return INVALID_VALUE;
}
EXPORT int cuGetErrorName(int code, const char **name) { return describe(code, name, 0); }
EXPORT int cuGetErrorString(int code, const char **text) { return describe(code, text, 1); }
