/* Random operations on layers against the model of tests/fuzz/layer.c.
 *
 *     fuzz_layer [operations] [seed]
 *
 * A run that breaks a promise names its seed, with which `fuzz_layer 1 SEED` does it again. */
#include "../fuzz/layer.c"

#include <signal.h>
#include <time.h>

static uint64_t seed;

static void name_seed(int number)
{
    (void)number;
    fprintf(stderr, "fuzz_layer: again by: fuzz_layer 1 %llu\n", (unsigned long long)seed);
}

int main(int argc, char **argv)
{
    static uint8_t data[4096];
    long wanted = argc > 1 ? atol(argv[1]) : 20000;
    seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    signal(SIGABRT, name_seed);
    time_t start = time(NULL);
    for (; w.operations < wanted; seed++) {
        uint64_t state = seed;
        for (size_t i = 0; i < sizeof data; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            data[i] = (uint8_t)(state >> 56);
        }
        LLVMFuzzerTestOneInput(data, 400 + (size_t)(state >> 33) % 3600);
    }
    printf("%ld operations hold in %ld s: done, refused, nothing to do\n", w.operations, (long)(time(NULL) - start));
    for (int op = 0; op < OPERATIONS; op++)
        printf("%-14s%8ld%8ld%8ld\n", operations[op].name, outcomes[op][DONE], outcomes[op][REFUSED],
               outcomes[op][SKIPPED]);
    return 0;
}
