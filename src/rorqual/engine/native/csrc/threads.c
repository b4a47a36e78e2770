/* Threads that share the parts of one operation. They spin for a short time, because the next operation follows within
   microseconds, and then sleep. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

#include "step.h"

enum { MOST_THREADS = 256, SPINS = 20000, PARTS = 10, ROUND = 20, FIELD = 1023 };

static struct {
  pthread_mutex_t in_use; /* held by the thread whose work is shared */
  pthread_mutex_t sleep;
  pthread_cond_t wake;
  void (*work)(void *, int64_t, int64_t);
  void *arg;
  int64_t started; /* threads, without the caller's */
  pid_t process;   /* that started them; a fork has none */
  _Atomic int64_t round; /* its number << ROUND, plus its parts << PARTS, plus the next part that nobody has taken */
  _Atomic int64_t unfinished; /* parts */
} pool = {.in_use = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static void pause_briefly(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/* Take and run parts until none is left, and return the number of the round. A thread that another program keeps from running takes
   no part, so nobody waits for it. */
static int64_t take_parts(void) {
  for (;;) {
    int64_t round = atomic_load(&pool.round);
    const int64_t parts = round >> PARTS & FIELD, part = round & FIELD;
    if (part >= parts) return round >> ROUND;
    if (atomic_compare_exchange_weak(&pool.round, &round, round + 1)) {
      pool.work(pool.arg, part, parts);
      atomic_fetch_sub(&pool.unfinished, 1);
    }
  }
}

static void *serve(void *arg) {
  (void)arg;
  for (int64_t seen = take_parts();; seen = take_parts()) {
    for (int spins = 0; atomic_load(&pool.round) >> ROUND == seen && spins < SPINS; spins++) pause_briefly();
    if (atomic_load(&pool.round) >> ROUND == seen) {
      pthread_mutex_lock(&pool.sleep);
      while (atomic_load(&pool.round) >> ROUND == seen) pthread_cond_wait(&pool.wake, &pool.sleep);
      pthread_mutex_unlock(&pool.sleep);
    }
  }
  return NULL;
}

/* Start threads until `parts` can run at once, and return whether they run. */
static int start(int64_t parts) {
  if (pool.process != getpid()) {
    pool.process = getpid(), pool.started = 0;
    pthread_mutex_init(&pool.sleep, NULL); /* a thread that the fork lacks may hold it */
    pthread_cond_init(&pool.wake, NULL);
  }
  for (; pool.started < parts - 1; pool.started++) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, serve, NULL)) return 0;
    pthread_detach(thread);
  }
  return 1;
}

void run_parts(void (*work)(void *, int64_t, int64_t), void *arg, int64_t parts) {
  /* Another engine's step may hold the pool. The parts then run one after the other, with the same results. */
  if (parts <= 1 || parts > MOST_THREADS || pthread_mutex_trylock(&pool.in_use)) {
    for (int64_t part = 0; part < parts; part++) work(arg, part, parts);
    return;
  }
  if (!start(parts)) {
    for (int64_t part = 0; part < parts; part++) work(arg, part, parts);
  } else {
    pool.work = work, pool.arg = arg;
    atomic_store(&pool.unfinished, parts);
    pthread_mutex_lock(&pool.sleep);
    atomic_store(&pool.round, ((atomic_load(&pool.round) >> ROUND) + 1) << ROUND | parts << PARTS);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.sleep);
    take_parts();
    for (int spins = 0; atomic_load(&pool.unfinished) > 0; spins++)
      spins < SPINS ? pause_briefly() : (void)sched_yield();
  }
  pthread_mutex_unlock(&pool.in_use);
}

int has_vnni(void) { return __builtin_cpu_supports("avx512vnni"); }
