package dev.edgekd.sample

import android.content.Context
import dev.edgekd.EdgeTagger
import dev.edgekd.load

internal const val EXAMPLE = "A table for two at seven, please"

internal suspend fun open(context: Context) = EdgeTagger.load(context)

internal fun EdgeTagger.answered(text: String): String =
    tag(text).joinToString("\n") { "${it.label}: ${it.text} (${it.start} to ${it.end}, ${it.score})" }
