"""Operations on visible tokens: window attention, submanifold convolution."""
