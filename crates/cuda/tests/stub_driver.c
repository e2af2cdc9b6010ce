/* A driver for machines without one: what it says is chosen when it is compiled.
   VERSION: what cuDriverGetVersion gives; DEVICES: how many; INIT: what cuInit returns; NO_COUNT: leaves a function out. */
#include <stddef.h>
#include <string.h>

int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuInit(unsigned flags) { return flags ? 1 : INIT; }
#ifndef NO_COUNT
int cuDeviceGetCount(int *count) { *count = DEVICES; return 0; }
#endif
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 40; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device == 40 ? "Stub A" : "Stub B", size);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(device - 38) << 30; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    (void)device;
    *value = which == 75 ? 8 : which == 76 ? 6 : -1;
    return 0;
}
int cuGetErrorName(int error, const char **name) {
    *name = error == 999 ? "CUDA_ERROR_UNKNOWN" : NULL;
    return *name ? 0 : 1;
}
