/* What torch_npu looks up in libacl_op_compiler at run time. */

#include <stddef.h>
#include <stdint.h>

int aclSetCompileopt(int option, const char *value) { return 0; }
size_t aclGetCompileoptSize(int option) { return 16; }
int aclGetCompileopt(int option, char *value, size_t size) {
    if (size) value[0] = 0;
    return 0;
}
int aclGenGraphAndDumpForOp(void) { return 0; }
int aclCreateGraphDumpOpt(void) { return 0; }
int aclDestroyGraphDumpOpt(void) { return 0; }
int aclopCompileAndExecuteV2(void) { return 0; }
int aclrtGetSysParamOpt(int option, int64_t *value) { *value = 0; return 0; }
int aclrtSetSysParamOpt(int option, int64_t value) { return 0; }
int aclrtCtxSetSysParamOpt(int option, int64_t value) { return 0; }
