/* libstompp: packed networks without Python and without torch.
 *
 * It reads the files that sk.save_packed writes (docs/file-format.md) and runs the networks that they hold, on the same
 * kernels as the Python package: packed layers give the same bits, float layers the same values up to rounding.
 *
 *     stompp_network *network;
 *     stompp_error error;
 *     if (stompp_open("network.safetensors", NULL, &network, &error) != STOMPP_OK) return report(error.text);
 *     stompp_input image = {pixels, {4, {1, 3, 32, 32}}};
 *     stompp_output scores = {values, 10, {0}};
 *     if (stompp_run(network, &image, 1, &scores, 1, NULL, &error) != STOMPP_OK) return report(error.text);
 *     stompp_close(network);
 *
 * Rules that hold for every function
 *
 * - A function that can fail returns a status and writes a text for people to `error`, which may be NULL. Where it
 *   fails it writes nothing else that the caller gave it, but for outputs of a run that fails under way. No function
 *   throws, prints, exits or keeps state outside of a network.
 * - A network does not change once it is open. Any number of threads may call any function on one at the same time, but
 *   for stompp_close, which comes last. Calls do not wait for each other: each takes an arena, memory for the values
 *   between layers, from a pool that the network keeps.
 * - The first run of some input sizes plans and takes an arena and starts threads; later ones of the same sizes take
 *   what it left, and one that runs beside others what such a one would leave. What a kernel needs for itself while it
 *   runs, at most some hundred kilobytes a thread, it takes and gives back.
 * - Texts that functions return belong to the network and live until it is closed, or for ever where no network is
 *   given. They are UTF-8.
 * - Numbers are float32 in row-major order, as PyTorch has them: images are [batch][channels][height][width].
 *   Sizes count numbers unless they are called bytes.
 */
#ifndef STOMPP_H
#define STOMPP_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) || !defined(__GNUC__)
#define STOMPP_API
#else
#define STOMPP_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct stompp_network stompp_network;

typedef enum stompp_status {
  STOMPP_OK = 0,
  STOMPP_BAD_ARGUMENT = 1, /* of the call: a null pointer, sizes that the network cannot take, a small buffer */
  STOMPP_NO_FILE = 2,      /* the file is not there or cannot be read */
  STOMPP_BAD_FILE = 3,     /* no packed network, or one that is damaged, altered, or against the format's rules */
  STOMPP_UNSUPPORTED = 4,  /* holds what this library does not run; the text names module or node */
  STOMPP_NO_MEMORY = 5
} stompp_status;

typedef struct stompp_error {
  char text[512]; /* ends with 0, cut where it is longer; empty after STOMPP_OK */
} stompp_error;

#define STOMPP_MAX_RANK 8

typedef struct stompp_shape {
  int32_t rank;
  int64_t sizes[STOMPP_MAX_RANK]; /* the first `rank` count */
} stompp_shape;

/* Opening and closing */

typedef struct stompp_open_options {
  /* The implementation of kernels, such as "avx2" or "scalar"; NULL takes the best that the processor supports, or the
   * one that the environment variable STOMPP_CPU names. One that is unknown or cannot run here is an error. */
  const char* implementation;
} stompp_open_options;

/* Reads a file, checks all of it, and packs its weights for this machine. The file is not needed afterwards. `options`
 * may be NULL. */
STOMPP_API stompp_status stompp_open(const char* path, const stompp_open_options* options, stompp_network** network,
                                     stompp_error* error);

/* The same for the file's bytes in memory, at any address, which may be freed afterwards. */
STOMPP_API stompp_status stompp_open_memory(const void* bytes, size_t size, const stompp_open_options* options,
                                            stompp_network** network, stompp_error* error);

/* NULL is allowed. No other call on the network may be under way. */
STOMPP_API void stompp_close(stompp_network* network);

/* Description */

typedef struct stompp_description {
  int32_t inputs, outputs, layers;
  const char* implementation; /* of kernels, which the network was packed for */
  int64_t file_bytes;
  int64_t weight_bytes; /* that weights and constants take in memory */
} stompp_description;

STOMPP_API stompp_status stompp_describe(const stompp_network* network, stompp_description* description,
                                         stompp_error* error);

/* The name of input `index` as in the model's forward, or NULL where there is none. */
STOMPP_API const char* stompp_input_name(const stompp_network* network, int32_t index);

/* The key of output `index` where the network returns a dict, "0", "1" ... where it returns values; or NULL. */
STOMPP_API const char* stompp_output_name(const stompp_network* network, int32_t index);

typedef enum stompp_arithmetic {
  STOMPP_BINARY = 0,         /* +1 and -1 times +1 and -1: XNOR and popcount */
  STOMPP_BINARY_WEIGHTS = 1, /* floats times +1 and -1: additions */
  STOMPP_FLOAT = 2
} stompp_arithmetic;

/* A layer is a module with a weight, in order of execution. */
typedef struct stompp_layer {
  const char* name; /* as in the model, "layer1.0.conv1" */
  const char* type; /* as in the file, "PackedConv2d" */
  stompp_arithmetic arithmetic;
  stompp_shape weight;  /* logical: [outputs, inputs], or [outputs, inputs / groups, height, width] */
  int64_t weight_bytes; /* in memory, with the layer's constants */
} stompp_layer;

STOMPP_API stompp_status stompp_describe_layer(const stompp_network* network, int32_t index, stompp_layer* layer,
                                               stompp_error* error);

/* Says what a run with inputs of these sizes gives and takes, without running it. A file does not hold sizes of inputs:
 * a convolutional network takes images of any size that its layers allow, in batches of any size. `outputs` has room
 * for as many shapes as the network has outputs; it and `arena_bytes`, the memory for values between layers that each
 * call that is under way takes, may be NULL. */
STOMPP_API stompp_status stompp_plan(const stompp_network* network, const stompp_shape* inputs, int32_t input_count,
                                     stompp_shape* outputs, int64_t* arena_bytes, stompp_error* error);

/* Running */

typedef struct stompp_input {
  const float* data; /* is read only */
  stompp_shape shape;
} stompp_input;

typedef struct stompp_output {
  float* data;        /* does not overlap an input */
  int64_t capacity;   /* numbers that data has room for; more than needed is allowed */
  stompp_shape shape; /* is written */
} stompp_output;

/* A value between layers, as it lies in memory; it lives during the call of stompp_observe. */
typedef struct stompp_value {
  const char* name;  /* of the graph's node that made it */
  const char* layer; /* of the module, "" where a function made it */
  int32_t is_bits;   /* 0: floats. 1: words of 32 bits, of the last dimension, the lowest bit first; 1 means -1 */
  const void* data;  /* const float *, or const uint32_t * */
  /* Floats have PyTorch's sizes, [batch][channels][height][width] for images, and strides that count floats. Bits have
   * [batch][height][width][channels], each pixel in ceil(channels / 32) words, without gaps; their strides are 0. */
  stompp_shape shape;
  int64_t strides[STOMPP_MAX_RANK];
} stompp_value;

/* Is called in the thread that called stompp_run, after each step of the network, with each value that it made. It may
 * not call stompp_run with the same options. */
typedef void (*stompp_observe)(void* context, const stompp_value* value);

typedef struct stompp_run_options {
  int32_t threads; /* that this call may use, itself included; 0 and 1: its own alone. Results do not depend on it */
  stompp_observe observe; /* or NULL */
  void* context;          /* for observe */
} stompp_run_options;

/* Runs the network once. Counts must be those of the description; the batch is the first size of an input. `options`
 * may be NULL. */
STOMPP_API stompp_status stompp_run(const stompp_network* network, const stompp_input* inputs, int32_t input_count,
                                    stompp_output* outputs, int32_t output_count, const stompp_run_options* options,
                                    stompp_error* error);

/* The library */

/* The name of implementation `index` that this processor can run, best first, or NULL after the last. */
STOMPP_API const char* stompp_implementation(int32_t index);

/* "1.0": a later minor version only adds functions. */
STOMPP_API const char* stompp_version(void);

#ifdef __cplusplus
}
#endif

#endif
