// Made by unicode_tables.py from tokenizers 0.23.3: do not edit.
// A table is a list of runs, in base 36: how many characters, and the value that they share.

export const FLAGS = {
  cleaned: 1,
  blank: 2,
  mark: 4,
  chinese: 8,
  space: 16,
  punctuation: 32,
  letter: 64,
  number: 128,
  gap: 256,
  word: 512,
  decomposes: 1024,
  lowers: 2048,
} as const;

export const RUNS =
  "9 1 2 7m 2 7l 1 7m i 1 1 7m f w a hs 7 w q 20w 4 w 1 f4 1 w q g0 4 w 6 1 1 7l q 1 1 7m 1 w 5 0 1 w 2 0 1 g0 " +
  "1 w 1 0 1 1 4 0 2 3k 1 0 1 g0 2 w 1 0 1 3k 1 g0 1 w 3 3k 1 w 6 2tc 1 20w 9 2tc 1 20w 6 2tc 1 0 1 20w 5 2tc " +
  "1 20w 1 g0 6 18g 1 g0 9 18g 1 g0 6 18g 1 0 1 g0 5 18g 1 g0 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc " +
  "1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 20w 1 g0 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc " +
  "1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 20w 1 g0 1 2tc 1 18g 1 2tc " +
  "1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 g0 1 20w 1 g0 1 2tc 1 18g 1 2tc 1 18g 1 g0 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 20w 1 g0 1 20w 1 g0 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 g0 1 20w 1 g0 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 20w 1 g0 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 2tc 1 18g 1 20w 1 g0 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 2tc 1 18g 2 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 2 g0 2 20w 1 g0 1 20w 1 g0 2 20w 1 g0 3 20w 2 g0 " +
  "4 20w 1 g0 2 20w 1 g0 3 20w 3 g0 2 20w 1 g0 1 20w 1 2tc 1 18g 1 20w 1 g0 1 20w 1 g0 2 20w 1 g0 1 20w 2 g0 " +
  "1 20w 1 g0 1 20w 1 2tc 1 18g 3 20w 1 g0 1 20w 1 g0 2 20w 3 g0 1 20w 7 g0 2 20w 1 g0 2 20w 1 g0 2 20w 1 g0 " +
  "1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 g0 1 2tc " +
  "1 18g 1 2tc 1 18g 1 2tc 1 18g 1 20w 1 g0 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 2 18g 2 20w " +
  "1 g0 1 2tc 1 18g 2 20w 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 2tc 1 18g 1 20w 1 g0 1 2tc 1 18g 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 2tc 1 18g 1 2tc 1 18g 1 2tc " +
  "1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 6 g0 2 20w 1 g0 2 20w 2 g0 1 20w 1 g0 4 20w 1 g0 1 20w " +
  "1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 37 g0 4 0 c g0 e 0 5 g0 7 0 1 g0 1 0 1 g0 h 0 1s ec 2 16o 1 ec 2 16o 17 ec " +
  "1 20w 1 g0 1 20w 1 g0 1 18g 1 0 1 20w 1 g0 2 0 4 g0 1 tc 1 20w 5 0 1 sg 1 2tc 1 tc 3 2tc 1 0 1 2tc 1 0 2 2tc " +
  "1 18g h 20w 1 0 7 20w 2 2tc 5 18g p g0 5 18g 1 20w 3 g0 2 18g 3 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w " +
  "1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 5 g0 1 20w 1 g0 1 0 " +
  "1 20w 1 g0 2 20w 2 g0 3 20w 2 2tc 1 20w 1 2tc 3 20w 1 2tc 4 20w 3 2tc a 20w 1 2tc m 20w 9 g0 1 18g m g0 2 18g " +
  "1 g0 1 18g 3 g0 1 18g 4 g0 3 18g 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w " +
  "1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 2tc 1 18g 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 " +
  "1 20w 1 g0 1 0 5 ec 2 e8 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w " +
  "1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w " +
  "1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w " +
  "1 2tc 1 18g 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 2 g0 1 2tc 1 18g 1 2tc 1 18g 1 20w " +
  "1 g0 1 2tc 1 18g 1 20w 1 g0 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 20w 1 g0 1 2tc 1 18g 1 2tc 1 18g 1 2tc " +
  "1 18g 1 20w 1 g0 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 20w 1 g0 1 2tc " +
  "1 18g 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 " +
  "1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 " +
  "1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 0 12 20w 2 0 1 g0 " +
  "6 w 15 g0 2 w 6 0 19 ec 1 w 1 ec 1 w 2 ec 1 w 2 ec 1 w 1 ec 8 0 r g0 4 0 4 g0 2 w b 0 6 1 3 0 2 w 1 0 2 w 2 0 " +
  "b ec 1 w 1 1 1 0 2 w 2 g0 5 18g 10 g0 l ec a hs 4 w 2 g0 1 ec 27 g0 1 18g 1 g0 1 18g g g0 1 18g 1 w 1 g0 7 ec " +
  "1 1 1 0 6 ec 2 g0 2 ec 1 0 4 ec 2 g0 a hs 3 g0 2 0 1 g0 e w 1 0 1 1 1 g0 1 ec u g0 r ec 2 0 2h g0 b ec 1 g0 " +
  "e 0 a hs x g0 9 ec 2 g0 1 0 3 w 1 g0 2 0 1 e8 2 0 m g0 4 ec 1 g0 9 ec 1 g0 3 ec 1 g0 5 ec 2 0 f w 1 0 p g0 " +
  "3 ec 2 0 1 w 1 0 b g0 5 0 o g0 1 0 6 g0 8 0 9 e8 16 g0 o e8 1 0 w ec 1 e8 11 g0 1 18g 7 g0 1 18g 2 g0 1 18g " +
  "5 g0 1 ec 1 e8 1 ec 1 g0 3 e8 8 ec 4 e8 1 ec 2 e8 1 g0 7 ec 8 18g 2 g0 2 ec 2 w a hs 1 w g g0 1 ec 2 e8 1 0 " +
  "8 g0 2 0 2 g0 2 0 m g0 1 0 7 g0 1 0 1 g0 3 0 4 g0 2 0 1 ec 1 g0 3 e8 4 ec 2 0 2 e8 2 0 2 16o 1 ec 1 g0 8 0 " +
  "1 e8 4 0 2 18g 1 0 1 18g 2 g0 2 ec 2 0 a hs 2 g0 2 0 6 3k 2 0 1 g0 1 0 1 e8 2 0 2 ec 1 e8 1 0 6 g0 4 0 2 g0 " +
  "2 0 m g0 1 0 7 g0 1 0 1 g0 1 18g 1 0 1 g0 1 18g 1 0 2 g0 2 0 1 ec 1 0 3 e8 2 ec 4 0 2 ec 2 0 3 ec 3 0 1 ec " +
  "7 0 3 18g 1 g0 1 0 1 18g 7 0 a hs 2 ec 3 g0 1 ec b 0 2 ec 1 e8 1 0 9 g0 1 0 3 g0 1 0 m g0 1 0 7 g0 1 0 2 g0 " +
  "1 0 5 g0 2 0 1 ec 1 g0 3 e8 5 ec 1 0 2 ec 1 e8 1 0 2 e8 1 ec 2 0 1 g0 f 0 2 g0 2 ec 2 0 a hs 1 w 8 0 1 g0 " +
  "6 e8 1 0 1 ec 2 e8 1 0 8 g0 2 0 2 g0 2 0 m g0 1 0 7 g0 1 0 2 g0 1 0 5 g0 2 0 1 ec 1 g0 1 e8 1 ec 1 e8 4 ec " +
  "2 0 1 e8 1 16o 2 0 2 16o 1 ec 7 0 1 e8 1 ec 1 e8 4 0 2 18g 1 0 3 g0 2 ec 2 0 a hs 1 0 1 g0 6 3k a 0 1 ec 1 g0 " +
  "1 0 6 g0 3 0 3 g0 1 0 2 g0 1 18g 1 g0 3 0 2 g0 1 0 1 g0 1 0 2 g0 3 0 2 g0 3 0 3 g0 3 0 c g0 4 0 2 e8 1 ec " +
  "2 e8 3 0 3 e8 1 0 3 16o 1 ec 2 0 1 g0 6 0 1 e8 e 0 a hs 3 3k d 0 1 ec 4 e8 8 g0 1 0 3 g0 1 0 n g0 1 0 g g0 " +
  "2 0 1 e8 1 g0 3 ec 4 e8 1 0 2 ec 1 16o 1 0 4 ec 7 0 2 ec 1 0 3 g0 2 0 1 g0 2 0 2 g0 2 ec 2 0 a hs 8 0 7 3k " +
  "1 0 1 g0 1 ec 2 e8 1 0 8 g0 1 0 3 g0 1 0 n g0 1 0 a g0 1 0 5 g0 2 0 1 ec 1 g0 1 e8 1 ec 1 16o 4 e8 1 0 1 ec " +
  "2 16o 1 0 2 16o 2 ec 7 0 2 e8 6 0 2 g0 1 0 2 g0 2 ec 2 0 a hs 1 0 2 g0 1 e8 c 0 1 e8 1 ec 2 e8 9 g0 1 0 3 g0 " +
  "1 0 15 g0 2 e8 1 g0 3 e8 4 ec 1 0 3 e8 1 0 3 16o 1 ec 1 g0 5 0 3 g0 1 e8 7 3k 3 g0 2 ec 2 0 a hs 9 3k 1 0 " +
  "6 g0 1 0 3 e8 1 0 i g0 3 0 o g0 1 0 9 g0 1 0 1 g0 2 0 7 g0 3 0 1 ec 4 0 3 e8 3 ec 1 0 1 ec 1 0 2 e8 1 16o " +
  "1 e8 3 16o 1 e8 6 0 a hs 2 0 2 e8 1 w c 0 1c g0 1 ec 2 g0 7 ec 5 0 7 g0 8 ec 1 w a hs 2 w 11 0 2 g0 1 0 1 g0 " +
  "1 0 5 g0 1 0 o g0 1 0 1 g0 1 0 a g0 1 ec 2 g0 6 ec 1 e8 2 ec 1 g0 2 0 5 g0 1 0 1 g0 1 0 6 ec 1 e8 1 0 a hs " +
  "2 0 4 g0 w 0 1 g0 3 0 f w 1 0 1 w 3 0 2 ec 6 0 a hs a 3k 1 0 1 ec 1 0 1 ec 1 0 1 ec 4 w 2 e8 3 g0 1 18g 4 g0 " +
  "1 0 4 g0 1 18g 4 g0 1 18g 4 g0 1 18g 4 g0 1 18g c g0 1 18g 3 g0 4 0 2 ec 1 16o 1 ec 2 16o 1 ec 1 16o 6 ec " +
  "1 e8 1 ec 1 16o 3 ec 1 w 2 ec 5 g0 6 ec 1 16o 4 ec 1 0 4 ec 1 16o 4 ec 1 16o 4 ec 1 16o 4 ec 1 16o c ec 1 16o " +
  "3 ec 9 0 1 ec 9 0 5 w 4 0 2 w 11 0 12 g0 1 18g 4 g0 2 e8 4 ec 1 e8 6 ec 1 e8 2 ec 2 e8 2 ec 1 g0 a hs 6 w " +
  "6 g0 2 e8 2 ec 4 g0 3 ec 1 g0 3 e8 2 g0 7 e8 3 g0 4 ec d g0 1 ec 2 e8 2 ec 6 e8 1 ec 1 g0 1 e8 a hs 3 e8 1 ec " +
  "2 0 12 20w 1 0 1 20w 5 0 1 20w 2 0 17 g0 1 w 99 g0 1 0 4 g0 2 0 7 g0 1 0 1 g0 1 0 4 g0 2 0 15 g0 1 0 4 g0 2 0 " +
  "x g0 1 0 4 g0 2 0 7 g0 1 0 1 g0 1 0 4 g0 2 0 f g0 1 0 1l g0 1 0 4 g0 2 0 1v g0 2 0 3 ec 9 w k 3k 3 0 g g0 g 0 " +
  "2e 20w 2 0 6 g0 2 0 1 w h8 g0 2 w h g0 1 7m q g0 2 w 3 0 23 g0 3 w 3 hs 8 g0 7 0 i g0 3 ec 1 e8 9 0 j g0 3 ec " +
  "2 w 9 0 i g0 2 ec c 0 d g0 1 0 3 g0 1 0 2 ec c 0 1g g0 2 ec 1 e8 7 ec 8 e8 1 ec 2 e8 b ec 3 w 1 g0 3 w 1 0 " +
  "1 g0 1 ec 2 0 a hs 6 0 a 3k 6 0 b w 3 ec 1 1 1 e8 a hs 6 0 2h g0 7 0 5 g0 2 e8 y g0 1 ec 1 g0 5 0 1y g0 a 0 " +
  "v g0 1 0 3 ec 4 e8 2 ec 3 e8 4 0 2 e8 1 ec 6 e8 3 ec 8 0 2 w a hs u g0 2 0 5 g0 b 0 18 g0 4 0 q g0 6 0 a hs " +
  "1 3k 11 0 n g0 2 ec 2 e8 1 ec 2 0 2 w 1h g0 1 e8 1 ec 1 e8 7 ec 1 0 1 ec 1 e8 1 ec 2 e8 8 ec 6 e8 a ec 2 0 " +
  "1 ec a hs 6 0 a hs 6 0 7 w 1 g0 6 w 2 0 e ec h e8 1d 0 4 ec 1 e8 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g " +
  "1 g0 1 18g 3 g0 1 18g x g0 1 ec 1 e8 5 ec 1 16o 1 ec 1 16o 2 e8 2 16o 1 ec 1 16o 1 e8 8 g0 3 0 a hs 7 w a 0 " +
  "9 ec c 0 2 ec 1 e8 u g0 1 e8 4 ec 2 e8 2 ec 1 e8 3 ec 2 g0 a hs 18 g0 1 ec 1 e8 2 ec 3 e8 1 ec 1 e8 3 ec 2 e8 " +
  "8 0 4 w 10 g0 8 e8 8 ec 2 e8 2 ec 3 0 5 w a hs 3 0 3 g0 a hs 10 g0 2 w 9 g0 1 20w 1 g0 5 0 17 20w 2 0 3 20w " +
  "8 w 8 0 3 ec 1 w d ec 1 e8 7 ec 4 g0 1 ec 6 g0 1 ec 2 g0 1 e8 2 ec 1 g0 5 0 5c g0 1i ec 6 e8 4 ec 1 2tc 1 18g " +
  "1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g " +
  "1 2tc 1 18g 1 2tc 5 18g 1 g0 1 18g 2 g0 1 20w 1 g0 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc " +
  "1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc " +
  "1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc " +
  "1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc " +
  "1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc " +
  "1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 2tc 1 18g 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 8 18g 8 2tc 6 18g 2 0 " +
  "6 2tc 2 0 8 18g 8 2tc 8 18g 8 2tc 6 18g 2 0 6 2tc 2 0 8 18g 1 0 1 2tc 1 0 1 2tc 1 0 1 2tc 1 0 1 2tc 8 18g " +
  "8 2tc e 18g 2 0 8 18g 8 2tc 8 18g 8 2tc 8 18g 8 2tc 5 18g 1 0 2 18g 5 2tc 1 0 1 18g 2 0 1 sg 3 18g 1 0 2 18g " +
  "5 2tc 3 sg 4 18g 2 0 2 18g 4 2tc 1 0 3 sg 8 18g 5 2tc 3 sg 2 0 3 18g 1 0 2 18g 5 2tc 1 sg 2 0 2 102 9 7m 1 1 " +
  "2 e9 2 1 o w 2 7m 5 1 1 7m f w 2 f4 3 w 1 0 d w 1 0 1 w 1 f4 a w 1 7m 5 1 1 0 a 1 1 3k 1 g0 2 0 6 3k 3 0 2 w " +
  "1 g0 a 3k 3 0 2 w 1 0 d g0 1f 0 d ec 4 e8 1 ec 3 e8 c ec h 0 1 g0 4 0 1 g0 2 0 a g0 1 0 1 g0 3 0 5 g0 6 0 " +
  "1 g0 1 0 1 2tc 1 0 1 g0 1 0 2 2tc 2 g0 1 0 3 g0 1 20w 7 g0 2 0 4 g0 5 0 5 g0 4 0 1 g0 1 0 g 3k g 22o j hs " +
  "1 20w 1 g0 4 hs 1 3k g 0 2 sg i 0 1 sg u 0 3 sg 1g 0 1 sg 4 0 1 sg 2 0 1 sg n 0 1 sg 1 0 1 sg q 0 1 sg 2 0 " +
  "1 sg 2 0 1 sg 1 0 1 sg m 0 1 sg 1 0 1 sg a 0 5 sg 2 0 2 sg 2 0 2 sg 6 0 2 sg 2 0 2 sg 2 0 2 sg y 0 4 sg 1c 0 " +
  "4 sg 6 0 4 sg q 0 4 w t 0 2 tc 8l 0 1o 3k q 0 q 1z4 q e8 m 3k h4 0 e w u 3k 1d 0 2 w v 0 a w b7 0 m w 1r 0 " +
  "4 w w 0 2 w 66 0 1 sg 83 0 1c 20w 1c g0 1 20w 1 g0 3 20w 2 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 4 20w 1 g0 " +
  "1 20w 2 g0 1 20w 8 g0 3 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 " +
  "1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 " +
  "1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 " +
  "1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 " +
  "1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 " +
  "1 20w 1 g0 1 20w 2 g0 6 0 1 20w 1 g0 1 20w 1 g0 3 ec 1 20w 1 g0 5 0 4 w 1 3k 2 w 12 g0 1 0 1 g0 5 0 1 g0 2 0 " +
  "1k g0 7 0 1 g0 1 w e 0 1 ec n g0 9 0 7 g0 1 0 7 g0 1 0 7 g0 1 0 7 g0 1 0 7 g0 1 0 7 g0 1 0 7 g0 1 0 7 g0 1 0 " +
  "w ec 1b w 1 g0 j w cd 0 1 7m 3 w 1 0 2 g0 1 hs a w 2 0 c w 1 0 9 hs 4 ec 2 e8 1 w 5 g0 2 0 3 hs 2 g0 1 w 3 0 " +
  "b g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g " +
  "1 g0 1 18g 1 g0 1 18g 2 g0 1 18g 1 g0 1 18g 1 g0 1 18g 6 g0 2 18g 1 g0 2 18g 1 g0 2 18g 1 g0 2 18g 1 g0 2 18g " +
  "m g0 1 18g 2 g0 2 0 2 ec 2 0 1 g0 1 18g 1 g0 1 w b g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 " +
  "1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g 1 g0 1 18g 2 g0 1 18g 1 g0 1 18g 1 g0 1 18g 6 g0 " +
  "2 18g 1 g0 2 18g 1 g0 2 18g 1 g0 2 18g 1 g0 2 18g m g0 1 18g 2 g0 4 18g 1 w 2 g0 1 18g 1 g0 5 0 17 g0 1 0 " +
  "2m g0 3 0 4 3k a 0 w g0 1c 0 g g0 w 0 a 3k u 0 8 3k 1 0 f 3k w 0 a 3k 13 0 f 3k 8w 0 534 g8 1s 0 g74 g8 wd g0 " +
  "1v 0 1a g0 2 w 7h g0 3 w g g0 a hs 2 g0 k 0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 " +
  "1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 " +
  "1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 2 g0 1 ec 3 e8 1 w a ec 1 w 1 g0 " +
  "1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 " +
  "1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 3 g0 2 ec 1y g0 a hs 2 ec 6 w v 0 9 g0 2 0 1 20w 1 g0 1 20w 1 g0 1 20w " +
  "1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 3 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w " +
  "1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w " +
  "1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w " +
  "1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w a g0 1 20w 1 g0 1 20w 1 g0 2 20w 1 g0 1 20w 1 g0 1 20w " +
  "1 g0 1 20w 1 g0 1 20w 2 g0 2 0 1 20w 1 g0 1 20w 2 g0 1 20w 1 g0 1 20w 3 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 " +
  "1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 5 20w 1 g0 5 20w 1 g0 1 20w 1 g0 " +
  "1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 4 20w 1 g0 1 20w 1 g0 2 20w 1 g0 1 1kw 1 0 " +
  "1 20w 1 g0 1 1kw 1 g0 1 1kw 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w 1 g0 1 20w l 0 3 g0 1 20w c g0 1 ec 3 g0 1 ec " +
  "4 g0 1 ec n g0 2 e8 2 ec 1 e8 4 0 1 e8 3 0 6 3k a 0 1g g0 4 w 8 0 2 e8 1e g0 g e8 1 ec 1 e8 8 0 2 w a hs 6 0 " +
  "i ec 6 g0 3 w 1 g0 1 w 2 g0 1 e8 a hs s g0 8 ec 2 w n g0 b ec 2 e8 b 0 1 w t g0 3 0 3 ec 1 e8 1b g0 1 ec 2 e8 " +
  "4 ec 2 e8 1 ec 4 e8 d w 1 0 1 g0 a hs 4 0 2 w 5 g0 1 ec a g0 a hs 5 g0 1 0 15 g0 6 ec 2 e8 2 ec 2 e8 2 ec 9 0 " +
  "3 g0 1 ec 8 g0 1 ec 1 e8 2 0 a hs 2 0 4 w n g0 3 0 1 g0 1 e8 1 ec 1 e8 1e g0 1 ec 1 g0 3 ec 2 g0 2 ec 5 g0 " +
  "2 ec 1 g0 1 ec 1 g0 o 0 3 g0 2 w b g0 1 e8 2 ec 2 e8 2 w 3 g0 1 e8 1 ec a 0 6 g0 2 0 6 g0 2 0 6 g0 9 0 7 g0 " +
  "1 0 7 g0 1 0 17 g0 1 0 e g0 6 0 37 g0 2 e8 1 ec 2 e8 1 ec 2 e8 1 w 1 e8 1 ec 2 0 a hs 6 0 8mc 18g c 0 n g0 " +
  "4 0 1d g0 1l0 0 4xs 1 7i 18o 2 g8 1 18o 1 g8 1 18o 2 g8 a 18o 1 g8 1 18o 1 g8 1 18o 2 g8 2 18o 3 g8 1w 18o " +
  "2 8 2y 18o 12 8 7 g0 c 0 5 g0 5 0 1 18g 1 ec 1 18g 9 g0 1 0 d 18g 1 0 5 18g 1 0 1 18g 1 0 2 18g 1 0 2 18g 1 0 " +
  "9 18g 2r g0 x 0 a3 g0 2 w g 0 1s g0 2 0 1i g0 14 0 c g0 4 0 g ec a w 6 0 g ec 3 w 2 f4 o w 3 f4 3 w 1 0 e w " +
  "1 0 1 w 4 0 1 w 1 0 2 w 4 0 5 g0 1 0 3r g0 2 0 1 1 1 0 3 w 1 0 6 w 1 0 4 w a hs 2 w 3 0 2 w q 20w 3 w 1 0 " +
  "1 f4 1 0 q g0 1 w 1 0 1 w 1 0 7 w 2h g0 3 0 6 g0 2 0 6 g0 2 0 6 g0 2 0 3 g0 s 0 3 1 1 0 1 1 2 0 c g0 1 0 q g0 " +
  "1 0 j g0 1 0 2 g0 1 0 f g0 2 0 e g0 y 0 3f g0 5 0 3 w 4 0 19 3k c 0 1h hs 4 3k h 0 2 3k 35 0 1 ec 3m 0 t g0 " +
  "3 0 1d g0 f 0 1 ec r 3k 4 0 w g0 4 3k 9 0 k g0 1 hs 8 g0 1 hs 5 0 12 g0 5 ec 5 0 u g0 1 0 1 w 10 g0 4 0 8 g0 " +
  "1 w 5 hs 16 0 14 20w 3a g0 2 0 a hs 6 0 10 20w 4 0 10 g0 4 0 14 g0 8 0 1g g0 b 0 1 w b 20w 1 0 f 20w 1 0 " +
  "7 20w 1 0 2 20w 1 0 b g0 1 0 f g0 1 0 7 g0 1 0 2 g0 3 0 1g g0 c 0 8n g0 9 0 m g0 a 0 8 g0 o 0 6 g0 1 0 16 g0 " +
  "1 0 9 g0 1x 0 6 g0 2 0 1 g0 1 0 18 g0 1 0 2 g0 3 0 1 g0 2 0 n g0 1 0 1 w 8 3k n g0 2 0 7 3k v g0 8 0 9 3k " +
  "1c 0 j g0 1 0 2 g0 5 0 5 3k m g0 6 3k 3 0 1 w q g0 5 0 1 w 1s 0 1k g0 4 0 2 3k 2 g0 g 3k 2 0 1a 3k 1 g0 3 ec " +
  "1 0 2 ec 5 0 4 ec 4 g0 1 0 3 g0 1 0 t g0 2 0 3 ec 4 0 1 ec 9 3k 7 0 9 w 7 0 t g0 2 3k 1 w t g0 3 3k w 0 8 g0 " +
  "1 0 s g0 2 ec 4 0 5 3k 7 w 9 0 1i g0 3 0 7 w m g0 2 0 8 3k j g0 5 0 8 3k i g0 7 0 4 w c 0 7 3k 28 0 21 g0 " +
  "1j 0 1f 20w d 0 1f g0 7 0 6 3k 10 g0 4 e8 8 0 a hs 6 0 a hs 6 g0 m 20w 3 0 5 e8 1 0 n g0 62 0 v 3k 1 0 16 g0 " +
  "1 0 2 e8 3 0 2 g0 g 0 3 g0 1j 0 4 e8 t g0 a 3k 1 g0 8 0 m g0 b e8 4 3k r 0 i g0 4 e8 16 0 l g0 7 3k k 0 n g0 " +
  "9 0 1 e8 1 ec 1 e8 1h g0 f ec 7 w 4 0 k 3k a hs 1 e8 2 g0 2 e8 1 g0 9 0 3 ec 1 e8 n g0 1 18g 1 g0 1 18g e g0 " +
  "1 18g 4 g0 3 e8 4 ec 2 e8 2 ec 2 w 1 1 4 w 1 e8 d 0 p g0 7 0 a hs 6 0 3 ec 10 g0 5 ec 1 e8 1 ec 2 16o 5 ec " +
  "1 0 a hs 4 w 1 g0 2 e8 1 g0 8 0 z g0 1 ec 2 w 1 g0 9 0 2 ec 1 e8 1c g0 3 e8 9 ec 2 e8 4 g0 4 w 1 f4 3 ec 1 w " +
  "2 e8 a hs 1 g0 1 w 1 g0 3 w 1 0 k 3k b 0 i g0 1 0 p g0 3 e8 3 ec 2 e8 1 ec 1 e8 2 ec 6 w 1 e8 2 g0 1 e8 1q 0 " +
  "7 g0 1 0 1 g0 1 0 4 g0 1 0 f g0 1 0 a g0 1 w 6 0 1b g0 1 ec 3 e8 8 ec 5 0 a hs 6 0 2 ec 2 e8 1 0 8 g0 2 0 " +
  "2 g0 2 0 m g0 1 0 7 g0 1 0 2 g0 1 0 5 g0 1 0 1 e8 1 ec 1 g0 2 e8 1 ec 4 e8 2 0 2 e8 2 0 2 16o 1 e8 2 0 1 g0 " +
  "6 0 1 e8 5 0 5 g0 2 e8 2 0 7 ec 3 0 5 ec b 0 a g0 1 0 1 g0 2 0 1 g0 1 0 12 g0 1 0 1 g0 9 e8 1 0 1 e8 2 0 1 e8 " +
  "1 0 4 e8 1 0 5 e8 1 g0 1 e8 1 g0 d 0 2 e8 t 0 1h g0 i e8 4 g0 5 0 a hs 4 0 1 e8 3 g0 u 0 1c g0 3 e8 6 ec 1 e8 " +
  "1 ec 2 16o 1 e8 1 16o 2 ec 1 e8 2 ec 2 g0 1 w 1 g0 8 0 a hs 4m 0 1b g0 3 e8 4 ec 2 0 2 e8 2 16o 2 ec 1 e8 " +
  "2 ec n w 4 g0 2 ec y 0 1c g0 3 e8 8 ec 2 e8 1 ec 1 e8 2 ec 3 w 1 g0 b 0 a hs 12 0 17 g0 1 ec 1 e8 1 ec 2 e8 " +
  "6 ec 1 e8 1 ec 1 g0 7 0 a hs 6 0 k hs s 0 r g0 2 0 3 ec 2 e8 4 ec 1 e8 5 ec 4 0 a hs 2 3k 3 w 1 0 7 g0 55 0 " +
  "18 g0 f e8 2t 0 w 20w w g0 a hs 9 3k c 0 8 g0 2 0 1 g0 2 0 8 g0 1 0 2 g0 1 0 o g0 6 e8 1 0 2 e8 2 0 4 e8 1 g0 " +
  "1 e8 1 g0 2 e8 c 0 a hs 1y 0 8 g0 2 0 13 g0 7 e8 2 0 7 e8 1 g0 1 0 1 g0 1 e8 r 0 1 g0 a e8 14 g0 7 e8 1 g0 " +
  "4 e8 8 0 1 e8 8 0 1 g0 b e8 1a g0 g e8 3 0 1 g0 i 0 21 g0 5j 0 x g0 f 0 a hs 6 0 9 g0 1 0 11 g0 8 e8 1 0 8 e8 " +
  "1 g0 f 0 a hs j 3k 5 0 u g0 2 0 m e8 1 0 e e8 21 0 7 g0 1 0 2 g0 1 0 12 g0 6 e8 3 0 1 e8 1 0 2 e8 1 0 7 e8 " +
  "1 g0 1 e8 8 0 a hs 6 0 6 g0 1 0 2 g0 1 0 w g0 5 e8 1 0 2 e8 1 0 5 e8 1 g0 7 0 a hs 8m 0 j g0 4 e8 9 0 2 e8 " +
  "1 g0 1 e8 d g0 1 0 y g0 7 e8 3 0 5 e8 d 0 a hs 1 e8 2d 0 1 g0 f 0 l 3k 17 0 pm g0 2u 0 33 hs 1 0 5 w b 0 " +
  "5g g0 218 0 2p g0 f 0 ts g0 g 0 1 e8 6 g0 f e8 a 0 32z g0 5 0 g7 g0 5a1 0 u g0 i e8 a hs 1c6 0 ft g0 7 0 v g0 " +
  "1 0 a hs 4 0 2 w 27 g0 1 0 a hs 6 0 u g0 2 0 5 ec 1 w a 0 1c g0 7 ec 5 w 4 0 4 g0 1 w b 0 a hs 1 0 7 3k 1 0 " +
  "l g0 5 0 j g0 c0 0 19 g0 3 0 a hs 5i 0 w 20w w g0 n 3k 9 0 p 1kw 1z 0 23 g0 4 0 1 e8 1 g0 1j e8 7 0 4 ec d g0 " +
  "1s 0 2 g0 1 0 1 g0 1 e8 b 0 2 e8 e 0 4qg g0 8 0 ye g0 15 0 a g0 6w7 0 4 g0 1 0 7 g0 1 0 2 g0 1 0 83 g0 f 0 " +
  "1 g0 t 0 3 g0 2 0 1 g0 e 0 4 g0 8 0 b0 g0 1s4 0 2z g0 5 0 d g0 3 0 9 g0 7 0 a g0 3 0 2 ec 1 w 4 1 37w 0 a hs " +
  "ee 0 1a e8 2 0 n e8 ev 0 7 sg 2 e8 3 ec 3 0 6 e8 8 1 8 ec 2 0 7 ec u 0 4 ec d 0 6 sg 3l 0 3 ec 3f 0 k 3k c 0 " +
  "k 3k 30 0 p 3k 3r 0 2d g0 1 0 1z g0 1 0 2 g0 2 0 1 g0 2 0 2 g0 2 0 4 g0 1 0 c g0 1 0 1 g0 1 0 7 g0 1 0 1t g0 " +
  "1 0 4 g0 2 0 8 g0 1 0 7 g0 1 0 s g0 1 0 4 g0 1 0 5 g0 1 0 1 g0 3 0 7 g0 1 0 9g g0 2 0 p g0 1 0 p g0 1 0 v g0 " +
  "1 0 p g0 1 0 v g0 1 0 p g0 1 0 v g0 1 0 p g0 1 0 v g0 1 0 p g0 1 0 8 g0 2 0 1e hs e8 0 1j ec 4 0 1e ec 8 0 " +
  "1 ec e 0 1 ec 2 0 5 w f 0 5 ec 1 0 f ec uo 0 v g0 6 0 6 g0 5x 0 7 e8 1 0 h e8 2 0 7 e8 1 0 2 e8 1 0 5 e8 5 0 " +
  "1q g0 x 0 1 e8 34 0 19 g0 3 0 7 e8 7 g0 2 0 a hs 4 0 1 g0 8x 0 u g0 1 e8 h 0 18 g0 4 e8 a hs d2 0 s g0 4 e8 " +
  "a hs 5y 0 u g0 2 e8 1 g0 a hs dh 0 7 g0 1 0 4 g0 1 0 2 g0 1 0 f g0 1 0 5h g0 2 0 9 3k 7 ec 15 0 y 20w y g0 " +
  "7 e8 1 g0 4 0 a hs lz 0 1n 3k 1 0 3 3k 1 0 4 3k 24 0 19 3k 1 0 f 3k 5e 0 4 g0 1 0 r g0 1 0 2 g0 1 0 1 g0 2 0 " +
  "1 g0 1 0 a g0 1 0 4 g0 1 0 1 g0 1 0 1 g0 6 0 1 g0 4 0 1 g0 1 0 1 g0 1 0 1 g0 1 0 3 g0 1 0 2 g0 1 0 1 g0 2 0 " +
  "1 g0 1 0 1 g0 1 0 1 g0 1 0 1 g0 1 0 1 g0 1 0 2 g0 1 0 1 g0 2 0 4 g0 1 0 7 g0 1 0 4 g0 1 0 4 g0 1 0 1 g0 1 0 " +
  "a g0 1 0 h g0 5 0 3 g0 1 0 5 g0 1 0 h g0 g4 0 d 3k z 0 q e8 6 0 q e8 6 0 q e8 21y 0 a hs sm 0 wyo g8 w 0 " +
  "37e g8 6 8 66 g8 2 8 74 g0 48y g8 e 8 5rl g0 f 0 ha g0 1wi 0 f2 18o 2 8 15s 0 3t7 g0 5 0 38g g0 f975 0 1 1 " +
  "u 0 2o 1 3k 0 6o ec 1e6o 0 1eke 1 2 0 1eke 1 2 0";

export const ORDERS =
  "lc 0 l 6e 1 6g 4 64 1 6g 1 60 5 64 2 5m 4 64 2 5m b 64 5 1 4 64 3 6e 2 0 1 6e 2 0 1 6o 1 6e 3 64 3 6e 2 64 " +
  "1 0 3 6e 4 64 1 6e 1 6g 2 64 1 6e 1 6h 2 6i 1 6h 2 6i 1 6h d 6e 7n 0 5 6e 7d 0 1 64 4 6e 1 64 3 6e 1 66 1 64 " +
  "6 6e 6 64 2 6e 1 64 2 6e 1 66 1 6c 1 6e 1 a 1 b 1 c 1 d 1 e 1 f 1 g 1 h 1 i 2 j 1 k 1 l 1 m 1 0 1 n 1 0 1 o " +
  "1 p 1 0 1 6e 1 64 1 0 1 i 20 0 8 6e 1 u 1 v 1 w 1c 0 1 r 1 s 1 t 1 u 1 v 1 w 1 x 1 y 2 6e 2 64 5 6e 1 64 2 6e " +
  "1 64 g 0 1 z 2t 0 7 6e 2 0 4 6e 1 64 1 6e 2 0 2 6e 1 0 1 64 2 6e 1 64 z 0 1 10 u 0 1 6e 1 64 2 6e 1 64 2 6e " +
  "3 64 1 6e 2 64 1 6e 1 64 3 6e 1 64 1 6e 1 64 1 6e 1 64 1 6e 1 64 2 6e 4g 0 7 6e 1 64 1 6e y 0 4 6e 1 0 9 6e " +
  "1 0 3 6e 1 0 5 6e 17 0 3 64 3c 0 e 6e 1 0 1 64 2 6e 1 64 2 6e 1 64 3 6e 3 64 1 r 1 s 1 t 3 6e 1 64 2 6e 2 64 " +
  "5 6e 1o 0 1 7 g 0 1 9 3 0 1 6e 1 64 2 6e 2v 0 1 7 g 0 1 9 32 0 1 7 g 0 1 9 32 0 1 7 g 0 1 9 32 0 1 7 g 0 1 9 " +
  "3j 0 1 9 3j 0 1 9 7 0 1 2c 1 2j 2t 0 1 7 g 0 1 9 3j 0 1 9 3g 0 1 9 31 0 2 2v 1 9 d 0 4 2z 30 0 2 3a e 0 4 3e " +
  "24 0 2 64 r 0 1 64 1 0 1 64 1 0 1 60 1j 0 1 3l 1 3m 1 0 1 3o 5 0 4 3m 2 0 1 3m 1 0 2 6e 1 9 1 0 2 6e 1q 0 " +
  "1 64 34 0 1 7 1 0 2 9 2a 0 1 64 jz 0 3 6e qc 0 1 9 v 0 1 9 4d 0 1 9 a 0 1 6e 5n 0 1 6c 3z 0 1 66 1 6e 1 64 " +
  "63 0 1 6e 1 64 1z 0 1 9 k 0 8 6e 2 0 1 64 1c 0 5 6e 6 64 2 6e 1 64 3a 0 1 7 f 0 1 9 12 0 1 6e 1 64 7 6e 1i 0 " +
  "2 9 1m 0 1 7 b 0 2 9 1v 0 1 7 48 0 3 6e 1 0 1 1 5 64 2 6e 4 64 1 6e 1 0 7 1 4 0 1 64 6 0 1 6e 3 0 2 6e 5i 0 " +
  "2 6e 1 64 7 6e 1 64 2 6e 1 6i 1 5y 1 64 1 5m 11 6e 5 0 1 6e 1 6h 1 64 1 6e 1 64 k0 0 2 6e 2 1 4 6e 3 1 2 6e " +
  "4 0 1 6e 3 0 2 1 1 6e 1 64 1 6e 2 1 4 64 1 6e 2da 0 3 6e 3x 0 1 9 2o 0 w 6e fe 0 1 62 1 6c 1 6g 1 66 2 68 " +
  "2x 0 2 8 n9w 0 1 6e 4 0 a 6e w 0 2 6e 28 0 2 6e 7o 0 1 9 59 0 1 9 r 0 i 6e 1l 0 3 64 11 0 1 9 2n 0 1 7 c 0 " +
  "1 9 6n 0 1 6e 1 0 2 6e 1 64 2 0 2 6e 5 0 2 6e 1 0 1 6e 1g 0 1 9 6u 0 1 9 fn4 0 1 q ld 0 7 6e 7 64 2 6e r1 0 " +
  "1 64 6a 0 1 64 45 0 5 6e 1aq 0 1 64 1 0 1 6e 14 0 1 6e 1 1 1 64 4 0 1 9 4l 0 1 6e 1 64 127 0 1 9 1k 0 1 9 " +
  "1l 0 1 9 1 7 1x 0 3 6e 1c 0 2 9 1q 0 1 7 24 0 1 9 9 0 1 7 2y 0 1 9 1 7 4y 0 1 7 1 9 29 0 1 7 g 0 1 9 o 0 7 6e " +
  "3 0 5 6e 5p 0 1 9 3 0 1 7 3f 0 1 9 1 7 6z 0 1 9 1 7 3i 0 1 9 3a 0 1 9 1 7 37 0 1 9 103 0 1 9 fjk 0 5 1 1n 0 " +
  "7 6e g2v 0 1 1 43q 0 2 60 3 1 3 0 1 6a 5 60 8 0 8 64 2 0 5 6e 2 64 u 0 4 6e 44 0 3 6e 2pn 0 7 6e 1 0 h 6e 2 0 " +
  "7 6e 1 0 2 6e 1 0 5 6e 1ph 0 7 64 31 0 6 6e 1 7 l705 0";
