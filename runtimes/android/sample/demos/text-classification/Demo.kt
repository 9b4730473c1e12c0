package dev.edgekd.sample

import android.content.Context
import dev.edgekd.EdgeClassifier
import dev.edgekd.load

internal const val EXAMPLE = "My card has not arrived"

internal suspend fun open(context: Context) = EdgeClassifier.load(context)

internal fun EdgeClassifier.answered(text: String): String =
    classify(text).joinToString("\n") { "${it.label}: ${it.score}" }
