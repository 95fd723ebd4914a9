// Four workers and a server, over sockets: they agree on the scales, send a bucket of three layers as one message each,
// and the server takes their mean in one pass. It compares that with the messages added one by one, and with the
// gradients.
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <terngrad_kernels.h>

namespace {

constexpr int kWorkers = 4;
constexpr uint64_t kSeed = 1000;  // a worker's own seed: this + its rank
constexpr uint64_t kStep = 3;

void check(tgk_status status) {
  if (status != TGK_OK) throw std::runtime_error(std::string(tgk_status_name(status)) + ": " + tgk_last_error());
}

struct Destroy {
  void operator()(tgk_layout* layout) const { tgk_layout_destroy(layout); }
};
using Layout = std::unique_ptr<tgk_layout, Destroy>;

// A matrix, a convolution, and a bias that is carried as it is.
Layout make_layout() {
  const int64_t sizes[] = {300 * 784, 64 * 3 * 3 * 3, 300};
  const int32_t packings[] = {TGK_PACKING_BASE3, TGK_PACKING_TWO_BIT, TGK_PACKING_FLOAT32};
  tgk_layout* layout = nullptr;
  check(tgk_layout_create(sizes, 3, packings, 3, 0, 1, -1, &layout));
  return Layout(layout);
}

std::vector<float> gradient_of(int rank, int64_t size) {
  std::vector<float> gradient(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    gradient[static_cast<size_t>(i)] =
        1e-3f * std::sin(0.01f * static_cast<float>(i % 100003) + 0.1f * static_cast<float>(rank));
  }
  return gradient;
}

template <class T>
void send_all(int socket, const std::vector<T>& values) {
  const auto* bytes = reinterpret_cast<const char*>(values.data());
  for (size_t sent = 0; sent < values.size() * sizeof(T);) {
    const ssize_t count = write(socket, bytes + sent, values.size() * sizeof(T) - sent);
    if (count <= 0) throw std::runtime_error("write failed");
    sent += static_cast<size_t>(count);
  }
}

template <class T>
void receive_all(int socket, std::vector<T>* values) {
  auto* bytes = reinterpret_cast<char*>(values->data());
  for (size_t got = 0; got < values->size() * sizeof(T);) {
    const ssize_t count = read(socket, bytes + got, values->size() * sizeof(T) - got);
    if (count <= 0) throw std::runtime_error("read failed");
    got += static_cast<size_t>(count);
  }
}

void work(int rank, int server) {
  const Layout layout = make_layout();
  const std::vector<float> gradient = gradient_of(rank, tgk_layout_size(layout.get()));
  const void* x[] = {gradient.data()};  // one flat array; or a pointer to each layer

  // Everybody's scale becomes the largest; each worker clips at its own limit.
  std::vector<float> scale(static_cast<size_t>(tgk_layout_groups(layout.get())));
  std::vector<float> limit(scale.size());
  check(tgk_scales(layout.get(), x, 1, TGK_FLOAT32, 2.5, 0, scale.data(), limit.data(), nullptr));
  send_all(server, scale);
  receive_all(server, &scale);

  tgk_options options = TGK_OPTIONS_INIT;
  options.seed = kSeed + static_cast<uint64_t>(rank);
  options.offset = kStep;
  options.scale = scale.data();
  options.limit = limit.data();
  std::vector<unsigned char> message(static_cast<size_t>(tgk_layout_nbytes(layout.get())));
  check(tgk_encode(layout.get(), x, 1, TGK_FLOAT32, &options, message.data(), static_cast<int64_t>(message.size()),
                   nullptr));
  send_all(server, message);
}

bool serve(const std::vector<int>& workers) {
  const Layout layout = make_layout();
  const int64_t size = tgk_layout_size(layout.get());
  const int64_t nbytes = tgk_layout_nbytes(layout.get());

  std::vector<float> shared(static_cast<size_t>(tgk_layout_groups(layout.get())), 0.0f);
  for (const int worker : workers) {
    std::vector<float> own(shared.size());
    receive_all(worker, &own);
    for (size_t i = 0; i < own.size(); ++i) shared[i] = std::max(shared[i], own[i]);
  }
  for (const int worker : workers) send_all(worker, shared);

  std::vector<std::vector<unsigned char>> messages;
  std::vector<const void*> addresses;
  for (const int worker : workers) {
    messages.emplace_back(static_cast<size_t>(nbytes));
    receive_all(worker, &messages.back());
    check(tgk_validate(layout.get(), messages.back().data(), nbytes, 1, nullptr));
  }
  for (const auto& message : messages) addresses.push_back(message.data());

  std::vector<float> mean(static_cast<size_t>(size));
  const std::vector<double> weights(workers.size(), 1.0 / static_cast<double>(workers.size()));
  void* out[] = {mean.data()};
  check(tgk_decode_sum(layout.get(), addresses.data(), static_cast<int64_t>(addresses.size()), nbytes, weights.data(),
                       out, 1, TGK_FLOAT32, nullptr));

  // The same, one by one.
  std::vector<float> sum(mean.size(), 0.0f);
  void* into[] = {sum.data()};
  for (size_t i = 0; i < messages.size(); ++i) {
    check(tgk_accumulate(layout.get(), addresses[i], nbytes, weights[i], into, 1, TGK_FLOAT32, nullptr));
  }
  bool same = mean == sum;

  // An element is off by at most its scale; the average over all of them by far less, for the draws have no bias.
  double difference = 0.0;
  std::vector<std::vector<float>> gradients;
  for (int rank = 0; rank < kWorkers; ++rank) gradients.push_back(gradient_of(rank, size));
  const float largest = *std::max_element(shared.begin(), shared.end() - 1);  // the last is the carried layer's
  for (size_t i = 0; i < mean.size(); ++i) {
    float expected = 0.0f;
    for (const auto& gradient : gradients) expected += gradient[i] / kWorkers;
    same = same && std::fabs(mean[i] - expected) <= largest;
    difference += static_cast<double>(mean[i]) - static_cast<double>(expected);
  }
  std::printf("%d workers, %lld float32 in %lld bytes each; mean of decoded - gradient: %.1e; %s\n", kWorkers,
              static_cast<long long>(size), static_cast<long long>(nbytes), difference / static_cast<double>(size),
              same ? "as expected" : "DIFFERENT");
  return same;
}

}  // namespace

int main() {
  try {
    std::vector<int> sockets;
    for (int rank = 0; rank < kWorkers; ++rank) {
      int ends[2];
      if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) throw std::runtime_error("socketpair failed");
      const pid_t child = fork();
      if (child < 0) throw std::runtime_error("fork failed");
      if (child == 0) {
        for (const int socket : sockets) close(socket);
        close(ends[0]);
        try {
          work(rank, ends[1]);
        } catch (const std::exception& error) {
          std::fprintf(stderr, "worker %d: %s\n", rank, error.what());
          _exit(1);
        }
        _exit(0);
      }
      close(ends[1]);
      sockets.push_back(ends[0]);
    }
    bool good = serve(sockets);
    for (int rank = 0; rank < kWorkers; ++rank) {
      int outcome = 0;
      good = wait(&outcome) > 0 && outcome == 0 && good;
    }
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "server: %s\n", error.what());
    return EXIT_FAILURE;
  }
}
