/* The kernels of Classic McEliece's decoder, one after the other; compiled by peers.py in the folder of their sources. */

#include "bm.h"
#include "fft.h"
#include "fft_tr.h"
#include "params.h"
#include "vec256.h"
#include <stdint.h>

/* Syndromes, Berlekamp-Massey and roots, so many times. What they take does not depend on the data. */
void decode(int times) {
    static vec256 received[64][GFBITS], roots[64][GFBITS], syndromes[GFBITS];
    static vec128 locator[GFBITS];
    uint64_t state = 1;
    for (int i = 0; i < 64; i++) {
        for (int j = 0; j < GFBITS; j++) {
            for (int k = 0; k < 4; k++) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                ((uint64_t *)&received[i][j])[k] = state ^ state >> 29;
            }
        }
    }
    for (int i = 0; i < times; i++) {
        fft_tr(syndromes, received);
        bm(locator, syndromes);
        fft(roots, locator);
        received[0][0] = vec256_xor(received[0][0], roots[0][0]);
    }
}
