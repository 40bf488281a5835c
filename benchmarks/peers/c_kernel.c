/* Gradient descent on three square layers W_3 W_2 W_1 -> target with white inputs: the limit that
 * plain C sets. LANES networks lie side by side, entry by entry, so that one vector instruction
 * serves all of them and a trajectory stays in cache. No check, no general moment, no other shape.
 * Compiled for one WIDTH and one REAL (float or double). */
#include <pthread.h>
#include <stdlib.h>

typedef REAL lanes __attribute__((vector_size(64)));
/* Sums are kept in registers, TILE x TILE of them at a time; the tile must divide the width. */
#define TILE (WIDTH % 4 == 0 ? 4 : WIDTH % 3 == 0 ? 3 : WIDTH % 2 == 0 ? 2 : 1)
enum { K = WIDTH, SIZE = WIDTH * WIDTH, LANES = 64 / sizeof(REAL), DEPTH = 3 };

typedef struct {
    const REAL *target;
    REAL *weights[DEPTH];
    const REAL *rates;
    long batch, steps, first, stride;
    int failed;
} job;

/* c = a b, where the strides (by row, by column) say whether a factor is transposed. */
static inline __attribute__((always_inline)) void multiply(
    const lanes *restrict a, long a_row, long a_column,
    const lanes *restrict b, long b_row, long b_column, lanes *restrict c)
{
    for (long i = 0; i < K; i += TILE)
        for (long j = 0; j < K; j += TILE) {
            lanes sum[TILE][TILE] = {{{0}}};
            for (long l = 0; l < K; l++)
                for (long p = 0; p < TILE; p++)
                    for (long q = 0; q < TILE; q++)
                        sum[p][q] +=
                            a[(i + p) * a_row + l * a_column] * b[l * b_row + (j + q) * b_column];
            for (long p = 0; p < TILE; p++)
                for (long q = 0; q < TILE; q++)
                    c[(i + p) * K + j + q] = sum[p][q];
        }
}

static void descend(lanes *restrict w1, lanes *restrict w2, lanes *restrict w3, lanes rate,
                    const REAL *restrict target, long steps, lanes *restrict scratch)
{
    lanes *inner = scratch, *error = inner + SIZE, *back = error + SIZE;
    lanes *g1 = back + SIZE, *g2 = g1 + SIZE, *g3 = g2 + SIZE;
    for (long step = 0; step < steps; step++) {
        multiply(w2, K, 1, w1, K, 1, inner);
        multiply(w3, K, 1, inner, K, 1, error);
        for (long e = 0; e < SIZE; e++)
            error[e] -= target[e];
        multiply(w3, 1, K, error, K, 1, back);
        multiply(w2, 1, K, back, K, 1, g1);
        multiply(back, K, 1, w1, 1, K, g2);
        multiply(error, K, 1, inner, 1, K, g3);
        for (long e = 0; e < SIZE; e++) {
            w1[e] -= rate * g1[e];
            w2[e] -= rate * g2[e];
            w3[e] -= rate * g3[e];
        }
    }
}

static void *work(void *given)
{
    job *todo = given;
    lanes *memory = aligned_alloc(64, 9 * SIZE * sizeof(lanes));
    if (!memory) {
        todo->failed = 1;
        return NULL;
    }
    for (long start = todo->first * LANES; start < todo->batch; start += todo->stride * LANES) {
        lanes rate;
        for (long n = 0; n < LANES; n++) {
            /* the last group is filled up with copies of the last network */
            long network = start + n < todo->batch ? start + n : todo->batch - 1;
            rate[n] = todo->rates[network];
            for (long i = 0; i < DEPTH; i++)
                for (long e = 0; e < SIZE; e++)
                    memory[i * SIZE + e][n] = todo->weights[i][network * SIZE + e];
        }
        descend(memory, memory + SIZE, memory + 2 * SIZE, rate, todo->target, todo->steps,
                memory + 3 * SIZE);
        for (long n = 0; n < LANES && start + n < todo->batch; n++)
            for (long i = 0; i < DEPTH; i++)
                for (long e = 0; e < SIZE; e++)
                    todo->weights[i][(start + n) * SIZE + e] = memory[i * SIZE + e][n];
    }
    free(memory);
    return NULL;
}

/* Trains in place; returns 0, or 1 where memory or threads ran out. */
int train(const REAL *target, REAL *w1, REAL *w2, REAL *w3, const REAL *rates, long batch,
          long steps, long threads)
{
    pthread_t *handles = calloc(threads, sizeof *handles);
    job *jobs = calloc(threads, sizeof *jobs);
    int failed = !handles || !jobs;
    long started = 0;
    for (; !failed && started < threads; started++) {
        jobs[started] =
            (job){target, {w1, w2, w3}, rates, batch, steps, started, threads, 0};
        if (pthread_create(&handles[started], NULL, work, &jobs[started])) {
            failed = 1;
            break;
        }
    }
    for (long t = 0; t < started; t++) {
        pthread_join(handles[t], NULL);
        failed |= jobs[t].failed;
    }
    free(handles);
    free(jobs);
    return failed;
}
