/*
 * Prints the frequency of this processor's time-stamp counter in kHz.
 *
 * QEMU's TCG hands the counter on to the machine it emulates. There, Linux would measure it against an emulated
 * timer; one scheduling hiccup in these 50 ms, common on a busy machine, and it gives the counter up and tells
 * the time by the tick, 4 ms at a time. So measure it out here, and tell it.
 */
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct moment {
    double seconds;
    unsigned long long ticks;
};

/* The counter and the clock at the same time: the attempt that took the fewest ticks had no interruption. */
static struct moment now(void)
{
    struct moment best = { 0, 0 };
    unsigned long long shortest = ~0ULL;

    for (int attempt = 0; attempt < 50; attempt++) {
        struct timespec time;
        unsigned long long before = __rdtsc();
        clock_gettime(CLOCK_MONOTONIC_RAW, &time);
        unsigned long long took = __rdtsc() - before;

        if (took < shortest) {
            shortest = took;
            best.seconds = time.tv_sec + time.tv_nsec * 1e-9;
            best.ticks = before + took / 2;
        }
    }
    return best;
}

int main(void)
{
    struct timespec pause = { 0, 20 * 1000 * 1000 };
    struct moment start = now();
    nanosleep(&pause, NULL);
    struct moment end = now();

    printf("%.0f\n", (double)(end.ticks - start.ticks) / (end.seconds - start.seconds) / 1000);
    return 0;
}
