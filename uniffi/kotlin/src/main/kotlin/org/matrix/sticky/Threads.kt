package org.matrix.sticky

import com.sun.jna.Callback
import com.sun.jna.CallbackThreadInitializer
import com.sun.jna.Native

/**
 * Keeps the library's threads attached to the JVM between two calls of a listener, as daemons. Without it
 * JNA attaches a thread for each call and lets it go afterwards, which takes longer, gives each call a thread
 * of another name, and is warned about where a listener calls back.
 *
 * To be called once, before the first listener; it is no harm to call it again. Not for Android, whose
 * listeners' threads are few and whose processes do not end by themselves.
 */
public fun keepListenerThreadsAttached() {
    val callbacks: List<Callback> = listOf(
        uniffiCallbackInterfaceEntryListener.onReset,
        uniffiCallbackInterfaceEntryListener.onChanges,
        uniffiCallbackInterfaceKeyListener.onKey,
        uniffiCallbackInterfaceRtcListener.onReset,
        uniffiCallbackInterfaceRtcListener.onChanges,
        uniffiCallbackInterfaceSessionListener.onReset,
        uniffiCallbackInterfaceSessionListener.onChanges,
        uniffiCallbackInterfaceMemberStateListener.onState,
        uniffiCallbackInterfaceSyncStateListener.onState,
        uniffiRustFutureContinuationCallbackImpl,
    )
    for (callback in callbacks) {
        Native.setCallbackThreadInitializer(callback, CallbackThreadInitializer(true, false, "sticky"))
    }
}
