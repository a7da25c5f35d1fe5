/* The CANN runtime calls that must answer with something: device memory is host memory, and work is done when the call
 * returns. Every other symbol of CANN that torch_npu is linked to returns 0, which is success (see stubs.py). */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define OK 0
#define ALIGNMENT 512

static __thread int32_t current_device = 0;

static void *new_handle(void) {
    static uintptr_t last = 0x1000;
    return (void *)__sync_add_and_fetch(&last, 64);
}

static int allocate(void **pointer, size_t size) {
    return posix_memalign(pointer, ALIGNMENT, size ? size : ALIGNMENT);
}

/* Devices */
int aclrtGetDeviceCount(uint32_t *count) { *count = 8; return OK; }
const char *aclrtGetSocName(void) { return "Ascend910B2"; }
int aclrtSetDevice(int32_t device) { current_device = device; return OK; }
int aclrtGetDevice(int32_t *device) { *device = current_device; return OK; }
int aclrtGetCurrentContext(void **context) { *context = &current_device; return OK; }
int aclrtSetDeviceSatMode(int mode) { return OK; }
int aclrtSetOpExecuteTimeOut(uint32_t seconds) { return OK; }
int aclrtSetOpWaitTimeout(uint32_t seconds) { return OK; }
int aclrtSynchronizeDevice(void) { return OK; }
int aclrtSynchronizeDeviceWithTimeout(int32_t milliseconds) { return OK; }
int aclrtGetSysParamOpt(int option, int64_t *value) { *value = 0; return OK; }
int aclrtSetSysParamOpt(int option, int64_t value) { return OK; }
int aclrtCtxGetSysParamOpt(int option, int64_t *value) { *value = 0; return OK; }
int aclrtCtxSetSysParamOpt(int option, int64_t value) { return OK; }
const char *aclGetRecentErrMsg(void) { return ""; }
int aclrtPeekAtLastError(int level) { return OK; }
int aclrtGetLastError(int level) { return OK; }
int aclsysGetCANNVersion(int component, void *version) { return 1; /* there is none */ }

/* Streams and events */
int aclrtCreateStream(void **stream) { *stream = new_handle(); return OK; }
int aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flags) { *stream = new_handle(); return OK; }
int aclrtDestroyStreamForce(void *stream) { return OK; }
int aclrtSetStreamFailureMode(void *stream, uint64_t mode) { return OK; }
int aclrtSetStreamOverflowSwitch(void *stream, uint32_t flag) { return OK; }
int aclrtGetStreamOverflowSwitch(void *stream, uint32_t *flag) { *flag = 0; return OK; }
int aclrtSynchronizeStreamWithTimeout(void *stream, int32_t milliseconds) { return OK; }
int aclrtStreamQuery(void *stream, int *status) { *status = 0; return OK; }
int aclrtCreateEventWithFlag(void **event, uint32_t flag) { *event = new_handle(); return OK; }
int aclrtCreateEventExWithFlag(void **event, uint32_t flag) { *event = new_handle(); return OK; }
int aclrtQueryEventStatus(void *event, int *status) { *status = 1; return OK; }
int aclrtQueryEventWaitStatus(void *event, int *status) { *status = 0; return OK; }
int aclrtEventElapsedTime(float *milliseconds, void *begin, void *end) { *milliseconds = 0; return OK; }

/* Memory */
int aclrtGetMemInfo(int kind, size_t *free_bytes, size_t *total_bytes) {
    *total_bytes = (size_t)64 << 30;
    *free_bytes = (size_t)60 << 30;
    return OK;
}
int aclrtMalloc(void **pointer, size_t size, int policy) { return allocate(pointer, size); }
int aclrtMallocAlign32(void **pointer, size_t size, int policy) { return allocate(pointer, size); }
int aclrtMallocHost(void **pointer, size_t size) { return allocate(pointer, size); }
int aclrtFree(void *pointer) { free(pointer); return OK; }
int aclrtFreeHost(void *pointer) { free(pointer); return OK; }
int aclrtMemcpy(void *to, size_t room, const void *from, size_t size, int kind) { memcpy(to, from, size); return OK; }
int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t size, int kind, void *stream) {
    memcpy(to, from, size);
    return OK;
}
int aclrtMemset(void *pointer, size_t room, int value, size_t size) { memset(pointer, value, size); return OK; }
int aclrtMemsetAsync(void *pointer, size_t room, int value, size_t size, void *stream) {
    memset(pointer, value, size);
    return OK;
}
