// Large results: the page faults of fresh memory cost more than the arithmetic that fills it.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../common.h"

namespace gkd::cpu {

// Asks for huge pages, where the system has some to give; before anything is written.
inline void use_huge_pages(Tensor& tensor) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t past = (begin + tensor.numel() * tensor.element_size()) / kPage * kPage;
  if (first < past) madvise(reinterpret_cast<void*>(first), past - first, MADV_HUGEPAGE);
#endif
}

}  // namespace gkd::cpu
