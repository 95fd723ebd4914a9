/* A worker encodes one layer and sends it through a pipe; the server decodes it, adds it to its sum, and compares.
 *
 * The server makes the same gradient, so it knows what must arrive: the bytes depend only on the values, the seed, the
 * step and the layer's number, not on the processor. */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <terngrad_kernels.h>

#define N 100000
#define SEED 7 /* the worker's own */
#define STEP 41
#define LAYER 0

static void check(tgk_status status) {
  if (status == TGK_OK) return;
  fprintf(stderr, "%s: %s\n", tgk_status_name(status), tgk_last_error());
  exit(1);
}

static float gradient_at(int i) { return (float)(i % 2001 - 1000) * 1e-5f; }

static void fill(float* gradient) {
  for (int i = 0; i < N; ++i) gradient[i] = gradient_at(i);
}

static void encode(const float* gradient, void* message, int64_t nbytes) {
  check(tgk_encode_layer(gradient, N, TGK_FLOAT32, TGK_PACKING_TWO_BIT, 2.5, SEED, STEP, LAYER, message, nbytes, NULL));
}

static int work(int to_server, int64_t nbytes) {
  float* gradient = malloc(N * sizeof *gradient);
  char* message = malloc((size_t)nbytes);
  if (!gradient || !message) return 1;
  fill(gradient);
  encode(gradient, message, nbytes);
  for (int64_t sent = 0; sent < nbytes;) {
    const ssize_t count = write(to_server, message + sent, (size_t)(nbytes - sent));
    if (count <= 0) return 1;
    sent += count;
  }
  free(message);
  free(gradient);
  return 0;
}

static int serve(int from_worker, int64_t nbytes) {
  float* gradient = malloc(N * sizeof *gradient);
  float* decoded = malloc(N * sizeof *decoded);
  float* sum = calloc(N, sizeof *sum);
  char* message = malloc((size_t)nbytes);
  char* expected = malloc((size_t)nbytes);
  if (!gradient || !decoded || !sum || !message || !expected) return 1;
  for (int64_t got = 0; got < nbytes;) {
    const ssize_t count = read(from_worker, message + got, (size_t)(nbytes - got));
    if (count <= 0) return 1;
    got += count;
  }
  check(tgk_decode_layer(message, nbytes, TGK_PACKING_TWO_BIT, 1.0, decoded, N, TGK_FLOAT32, NULL));
  check(tgk_accumulate_layer(message, nbytes, TGK_PACKING_TWO_BIT, 1.0, sum, N, TGK_FLOAT32, NULL));

  fill(gradient);
  encode(gradient, expected, nbytes);
  int failures = memcmp(message, expected, (size_t)nbytes) != 0;
  double difference = 0.0;
  for (int i = 0; i < N; ++i) {
    failures += decoded[i] != sum[i];
    failures += decoded[i] * gradient[i] < 0.0f; /* a trit has its element's sign, or is 0 */
    difference += (double)decoded[i] - (double)gradient[i];
  }
  printf("%d float32 in %lld bytes; mean of decoded - gradient: %.1e; %s\n", N, (long long)nbytes, difference / N,
         failures ? "DIFFERENT" : "as expected");
  free(expected);
  free(message);
  free(sum);
  free(decoded);
  free(gradient);
  return failures != 0;
}

int main(void) {
  if (tgk_abi_version() != TGK_ABI_VERSION) return 1;
  int64_t nbytes;
  check(tgk_layer_nbytes(N, TGK_PACKING_TWO_BIT, &nbytes));
  int ends[2];
  if (pipe(ends) != 0) return 1;
  const pid_t worker = fork();
  if (worker < 0) return 1;
  if (worker == 0) {
    close(ends[0]);
    _exit(work(ends[1], nbytes));
  }
  close(ends[1]);
  const int failed = serve(ends[0], nbytes);
  close(ends[0]);
  int outcome;
  return waitpid(worker, &outcome, 0) != worker || outcome != 0 || failed;
}
