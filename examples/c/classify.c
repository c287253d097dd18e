/* Runs a packed network on one image, in a program without Python.
 *
 *     classify NETWORK CHANNELS HEIGHT WIDTH < image.f32
 *
 * NETWORK is a file of sk.save_packed; the image is float32, [channels][height][width], prepared as it was for
 * training.
 */
#include <stdio.h>
#include <stdlib.h>
#include <stompp.h>

static int fail(const char* text) {
  fprintf(stderr, "error: %s\n", text);
  return 1;
}

int main(int argc, char** argv) {
  stompp_network* network = NULL;
  stompp_error error;
  stompp_shape shape = {4, {1, 0, 0, 0}}, scores_shape;
  int64_t pixels = 1, classes = 1, best = 0, i;

  if (argc != 5) {
    fprintf(stderr, "usage: %s NETWORK CHANNELS HEIGHT WIDTH < image.f32\n", argv[0]);
    return 2;
  }
  for (i = 1; i < 4; ++i) pixels *= shape.sizes[i] = atoi(argv[i + 1]);
  if (pixels < 1 || pixels > 100000000) return fail("the image's sizes must be at least 1, and fit into memory");

  if (stompp_open(argv[1], NULL, &network, &error) != STOMPP_OK) return fail(error.text);
  if (stompp_plan(network, &shape, 1, &scores_shape, NULL, &error) != STOMPP_OK) return fail(error.text);
  for (i = 0; i < scores_shape.rank; ++i) classes *= scores_shape.sizes[i];

  float *image = malloc((size_t)pixels * sizeof(float)), *scores = malloc((size_t)classes * sizeof(float));
  if (image == NULL || scores == NULL) return fail("out of memory");
  if (fread(image, sizeof(float), (size_t)pixels, stdin) != (size_t)pixels) return fail("the image is cut short");

  stompp_input input = {image, shape};
  stompp_output output = {scores, classes, {0, {0}}};
  if (stompp_run(network, &input, 1, &output, 1, NULL, &error) != STOMPP_OK) return fail(error.text);
  for (i = 1; i < classes; ++i)
    if (scores[i] > scores[best]) best = i;
  printf("class %d with score %g\n", (int)best, (double)scores[best]);

  free(image);
  free(scores);
  stompp_close(network);
  return 0;
}
