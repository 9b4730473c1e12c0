package dev.edgekd

import dev.edgekd.text.Encoder
import dev.edgekd.text.TokenizerFile

/** The tokenizer in dev.edgekd.text, of this library. */
internal fun openEncoder(files: BundleFiles): Encoder = TokenizerFile.read(files.text("model/tokenizer.json"))
