#include "core/dense_mask.h"

#include <algorithm>

namespace dsm {

template <class Element>
void dense_mask(const DenseMaskArguments& arguments, MaskBits<Element> bits) {
  check_cu_seqlens({arguments.cu_seqlens, static_cast<size_t>(arguments.num_entries)},
                   arguments.num_tokens);
  Element* row = static_cast<Element*>(arguments.mask);
  Element* written = row;  // up to here; what is masked between two rows' ranges is one fill
  for (int64_t document = 0; document + 1 < arguments.num_entries; ++document) {
    for (int64_t query = arguments.cu_seqlens[document]; query < arguments.cu_seqlens[document + 1];
         ++query) {
      const ColumnRange attended = attended_columns(arguments, document, query);
      std::fill(written, row + attended.begin, bits.masked);
      std::fill(row + attended.begin, row + attended.end, bits.attended);
      written = row + attended.end;
      row += arguments.row_length;
    }
  }
  std::fill(written, row, bits.masked);
}

template void dense_mask(const DenseMaskArguments&, MaskBits<uint8_t>);
template void dense_mask(const DenseMaskArguments&, MaskBits<uint16_t>);
template void dense_mask(const DenseMaskArguments&, MaskBits<uint32_t>);

}  // namespace dsm
