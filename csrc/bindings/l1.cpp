// fastgan._C.l1_*: called by fastgan/kernels/native/l1.py.
#include "cpu/l1.h"

#include <pybind11/pybind11.h>

#include <vector>

namespace py = pybind11;

using fastgan::L1Pair;

namespace {

// [(addresses of a, b, their gradients and the signs, or 0; n, scale, dtype of a, dtype of b), ...]
std::vector<L1Pair> parse(const py::list& items) {
  std::vector<L1Pair> pairs;
  pairs.reserve(items.size());
  for (const py::handle& item : items) {
    const auto t = py::reinterpret_borrow<py::tuple>(item);
    const auto address = [&](size_t i) { return reinterpret_cast<uint8_t*>(t[i].cast<uintptr_t>()); };
    pairs.push_back({address(0), address(1), address(2), address(3), address(4), t[5].cast<int64_t>(),
                     t[6].cast<double>(), t[7].cast<int>(), t[8].cast<int>()});
  }
  return pairs;
}

std::vector<double> partials_of(const std::vector<L1Pair>& pairs) {
  int64_t chunks = 0;
  for (const L1Pair& pair : pairs) chunks += fastgan::l1_chunks(pair);
  return std::vector<double>(static_cast<size_t>(chunks));
}

}  // namespace

void bind_l1(py::module_& m) {
  m.def("l1_forward", [](const py::list& items, int threads) {
    const std::vector<L1Pair> pairs = parse(items);
    py::gil_scoped_release release;
    std::vector<double> partials = partials_of(pairs);
    return FASTGAN_CALL(l1_forward, pairs.data(), static_cast<int64_t>(pairs.size()), partials.data(), threads);
  });
  m.def("l1_backward", [](double grad, const py::list& items, int threads) {
    const std::vector<L1Pair> pairs = parse(items);
    py::gil_scoped_release release;
    FASTGAN_CALL(l1_backward, grad, pairs.data(), static_cast<int64_t>(pairs.size()), threads);
  });
  m.def("l1_directional", [](const py::list& items, int threads) {
    const std::vector<L1Pair> pairs = parse(items);
    py::gil_scoped_release release;
    std::vector<double> partials = partials_of(pairs);
    return FASTGAN_CALL(l1_directional, pairs.data(), static_cast<int64_t>(pairs.size()), partials.data(), threads);
  });
}
