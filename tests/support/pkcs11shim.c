/* A PKCS#11 module that passes every call on to another one, and renames three mechanisms on the way.
 *
 * p11-kit 0.24 carries only mechanisms that it knows from one process to the other, and it knows neither EdDSA's
 * nor AES-CMAC.  So on the side of the client these leave under the names of mechanisms that have no parameters
 * either and that nobody has, and on the side of the token they get their own back.
 *
 * Compiled with INNER, the path of the other module; ADDRESS, where p11-kit's client finds its server (or
 * nothing); and TOKEN_SIDE, 1 or 0.  The layout of CK_FUNCTION_LIST is PKCS#11 v2.40's, section 5.4.
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long ulong;
typedef struct { ulong mechanism; void *parameter; ulong length; } mechanism;
typedef struct { unsigned char version[2]; void *function[68]; } functions;
typedef ulong (*list_getter)(functions **);

enum { MECHANISM_LIST = 7, MECHANISM_INFO = 8, SIGN_INIT = 42, VERIFY_INIT = 48, GENERATE_KEY_PAIR = 59 };

/* CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EDDSA, CKM_AES_CMAC, and CKM_BATON_KEY_GEN, CKM_FASTHASH, CKM_JUNIPER_KEY_GEN */
static const ulong own[] = {0x1055, 0x1057, 0x108a}, assumed[] = {0x1030, 0x1070, 0x1060};

static functions *inner, outer;

/* As it is called towards the inner module, or (back) towards whoever calls us. */
static ulong renamed(ulong name, int back) {
    const ulong *from = TOKEN_SIDE != back ? assumed : own, *to = TOKEN_SIDE != back ? own : assumed;
    for (unsigned at = 0; at < sizeof own / sizeof *own; at++)
        if (name == from[at]) return to[at];
    return name;
}

static ulong get_mechanism_list(ulong slot, ulong *list, ulong *count) {
    ulong (*call)(ulong, ulong *, ulong *) = inner->function[MECHANISM_LIST];
    ulong found = call(slot, list, count);
    if (found == 0 && list != NULL)
        for (ulong i = 0; i < *count; i++) list[i] = renamed(list[i], 1);
    return found;
}

static ulong get_mechanism_info(ulong slot, ulong name, void *info) {
    ulong (*call)(ulong, ulong, void *) = inner->function[MECHANISM_INFO];
    return call(slot, renamed(name, 0), info);
}

static ulong sign_init(ulong session, mechanism *asked, ulong key) {
    ulong (*call)(ulong, mechanism *, ulong) = inner->function[SIGN_INIT];
    mechanism told = *asked;
    told.mechanism = renamed(told.mechanism, 0);
    return call(session, &told, key);
}

static ulong verify_init(ulong session, mechanism *asked, ulong key) {
    ulong (*call)(ulong, mechanism *, ulong) = inner->function[VERIFY_INIT];
    mechanism told = *asked;
    told.mechanism = renamed(told.mechanism, 0);
    return call(session, &told, key);
}

static ulong generate_key_pair(ulong session, mechanism *asked, void *public, ulong publics, void *private,
                               ulong privates, ulong *public_key, ulong *private_key) {
    ulong (*call)(ulong, mechanism *, void *, ulong, void *, ulong, ulong *, ulong *) =
        inner->function[GENERATE_KEY_PAIR];
    mechanism told = *asked;
    told.mechanism = renamed(told.mechanism, 0);
    return call(session, &told, public, publics, private, privates, public_key, private_key);
}

ulong C_GetFunctionList(functions **list) {
    if (inner == NULL) {
        if (ADDRESS[0] != '\0') setenv("P11_KIT_SERVER_ADDRESS", ADDRESS, 1);
        void *module = dlopen(INNER, RTLD_NOW | RTLD_LOCAL);
        list_getter getter = module == NULL ? NULL : (list_getter)dlsym(module, "C_GetFunctionList");
        ulong failed = getter == NULL ? 5 : getter(&inner); /* CKR_GENERAL_ERROR */
        if (failed != 0) return failed;
        memcpy(&outer, inner, sizeof outer);
        outer.function[3] = C_GetFunctionList;
        outer.function[MECHANISM_LIST] = get_mechanism_list;
        outer.function[MECHANISM_INFO] = get_mechanism_info;
        outer.function[SIGN_INIT] = sign_init;
        outer.function[VERIFY_INIT] = verify_init;
        outer.function[GENERATE_KEY_PAIR] = generate_key_pair;
    }
    *list = &outer;
    return 0;
}
