/// Forwards the lifecycle signals of Stem to Redis, where stem-agent hears them.
///
/// How to add it to a worker, a producer or a Beat:
///
/// 1. Copy this file into `lib/`; it needs no package but `stem` (0.2 or later).
/// 2. `final bridge = await StemSignalBridge.start();` before `worker.start()`.
/// 3. `await bridge.close();` after `worker.shutdown()`: until then a timer and a socket keep the process alive.
/// 4. Set `STEM_BROKER_URL`, `STEM_WORKER_NAMESPACE` and `STEM_TLS_*` as for Stem itself.
/// 5. Set `STEM_EMITTER` if the agent listens for another name than the host's.
///
/// Signals are local to an isolate: whoever emits in several isolates starts a bridge in each.
library;

import 'dart:async';
import 'dart:collection';
import 'dart:convert';
import 'dart:io' show Platform, SecureSocket, Socket, SocketOption, pid, stderr;
import 'dart:math';
import 'dart:typed_data';

import 'package:stem/stem.dart'
    show
        ControlCommandCompletedPayload,
        ControlCommandReceivedPayload,
        Envelope,
        Signal,
        SignalContext,
        SignalSubscription,
        StemEvent,
        StemSignals,
        TaskFailurePayload,
        TaskPostrunPayload,
        TaskPrerunPayload,
        TaskReceivedPayload,
        TaskRetryPayload,
        TaskRevokedPayload,
        TaskSuccessPayload,
        TlsConfig,
        WorkerInfo,
        WorkflowRunPayload;

/// Meta keys that never leave the process. They repeat arguments and results of this task and of others (which may
/// be personal), or grow with the number of tasks; none of them says anything about the life of the task.
const _privateMeta = {
  'chainPrevResult',
  'chordResults',
  'kwargs',
  'stem.chord.callbackEnvelope',
  'stem.link',
  'stem.linkError',
  'stem.unique.duplicates',
};

/// Handlers of a higher priority run earlier, and may cancel the rest: a witness stands before them.
const _priority = 1 << 20;

/// Publishes every signal of this isolate on `stem:signals:{namespace}:{emitter}`.
///
/// A worker never suffers from it. Handlers only write the signal down: nothing in them waits, and nothing leaves
/// them that was thrown. Sending is the business of a connection of its own, behind a bounded queue; what does not fit
/// is dropped, oldest first, counted in [dropped], and noticed by the agent as a hole in `seq`.
final class StemSignalBridge {
  StemSignalBridge._(this.namespace, this.emitter, this._publisher, Duration heartbeat) {
    if (_publisher == null) return;
    _connect();
    _beat();
    if (heartbeat > Duration.zero) _timer = Timer.periodic(heartbeat, (_) => _beat());
  }

  /// Starts forwarding, whether Redis can be reached or not.
  ///
  /// What is not given is read from the environment: [url] from `STEM_BROKER_URL` (else `redis://localhost:6379`),
  /// [namespace] from `STEM_WORKER_NAMESPACE` (else `stem`), [emitter] from `STEM_EMITTER` (else `HOSTNAME`, else the
  /// host's name), [tls] from `STEM_TLS_*`. Where the broker is not Redis nothing is forwarded, and that is told.
  ///
  /// The bridge beats every [heartbeat], also where Stem's own heartbeats are off; zero switches its beat off.
  /// At most [maxQueued] signals of together [maxQueuedBytes] bytes wait for Redis. [onProblem] is told of trouble at
  /// most once a minute; by default a line goes to stderr.
  ///
  /// Throws an [ArgumentError] for an emitter that is empty or contains a colon: its channel would read as another
  /// namespace's.
  static Future<StemSignalBridge> start({
    String? url,
    String? namespace,
    String? emitter,
    TlsConfig? tls,
    Duration heartbeat = const Duration(seconds: 10),
    int maxQueued = 10000,
    int maxQueuedBytes = 16 * 1024 * 1024,
    void Function(String problem)? onProblem,
  }) {
    return Future.sync(() {
      final speaker = emitter ?? _variable('STEM_EMITTER') ?? _variable('HOSTNAME') ?? Platform.localHostname;
      if (speaker.isEmpty || speaker.contains(':')) {
        throw ArgumentError.value(speaker, 'emitter', 'must not be empty or contain a colon');
      }
      final space = namespace ?? _variable('STEM_WORKER_NAMESPACE') ?? 'stem';
      final server = _server(url ?? _variable('STEM_BROKER_URL') ?? 'redis://localhost:6379');
      final troubles = _Troubles(onProblem ?? _toStderr);
      if (server == null) {
        troubles.tell('the broker is not redis:// or rediss://, so no signals are forwarded');
        return StemSignalBridge._(space, speaker, null, heartbeat);
      }
      final publisher = _Publisher(
        () => _Connection.open(server, tls ?? TlsConfig.fromEnvironment(Platform.environment)),
        channel: 'stem:signals:$space:$speaker',
        maxQueued: maxQueued,
        maxQueuedBytes: maxQueuedBytes,
        troubles: troubles,
      );
      return StemSignalBridge._(space, speaker, publisher, heartbeat);
    });
  }

  /// The worker namespace in which the bridge speaks.
  final String namespace;

  /// The name of the process that speaks.
  final String emitter;

  /// The random id of this bridge's life: `seq` counts within it.
  final String boot = _randomId();

  final _Publisher? _publisher;
  final _subscriptions = <SignalSubscription>[];
  final _deliveries = _Deliveries();
  final _workers = <String, WorkerInfo>{};
  Timer? _timer;
  int _seq = 0;
  Future<void>? _closed;

  /// How many signals were lost here: not composed, pushed out of the queue, or left at the end.
  int get dropped => _publisher?.dropped ?? 0;

  /// Stops listening, sends what is queued within [deadline], and lets go of Redis.
  ///
  /// Never throws; closing twice is closing once.
  Future<void> close({Duration deadline = const Duration(seconds: 5)}) => _closed ??= _close(deadline);

  Future<void> _close(Duration deadline) async {
    for (final subscription in _subscriptions) {
      subscription.cancel();
    }
    _timer?.cancel();
    if (_publisher == null) return;
    _beat(); // a last number, so that a loss among the last signals is noticed
    await _publisher.close(deadline);
  }

  void _connect() {
    _on(StemSignals.beforeTaskPublish, (event) => _publish(event.envelope));
    _on(StemSignals.afterTaskPublish, (event) => _publish(event.envelope));
    _on(StemSignals.taskReceived, (event) => _attempt(event, event.envelope, event.worker));
    _on(StemSignals.taskPrerun, (event) => _attempt(event, event.envelope, event.worker));
    _on(StemSignals.taskPostrun, (event) => _attempt(event, event.envelope, event.worker));
    _on(StemSignals.taskRetry, (event) => _attempt(event, event.envelope, event.worker));
    _on(StemSignals.taskSucceeded, (event) => _attempt(event, event.envelope, event.worker));
    _on(StemSignals.taskFailed, (event) => _attempt(event, event.envelope, event.worker));
    _on(StemSignals.taskRevoked, (event) => _attempt(event, event.envelope, event.worker));
    _on(StemSignals.workerInit, (event) => _alive(event.worker));
    _on(StemSignals.workerReady, (event) => _alive(event.worker));
    _on(StemSignals.workerStopping, (event) => _alive(event.worker));
    _on(StemSignals.workerShutdown, (event) => _gone(event.worker));
    _on(StemSignals.workerHeartbeat, (event) => _alive(event.worker));
    _on(StemSignals.workerChildInit, (event) => _process());
    _on(StemSignals.workerChildShutdown, (event) => _process());
    _on(StemSignals.workflowRunStarted, _nothing);
    _on(StemSignals.workflowRunSuspended, _nothing);
    _on(StemSignals.workflowRunResumed, _nothing);
    _on(StemSignals.workflowRunCompleted, _nothing);
    _on(StemSignals.workflowRunFailed, _nothing);
    _on(StemSignals.workflowRunCancelled, _nothing);
    _on(StemSignals.scheduleEntryDue, _nothing);
    _on(StemSignals.scheduleEntryDispatched, _nothing);
    _on(StemSignals.scheduleEntryFailed, _nothing);
    _on(StemSignals.controlCommandReceived, _nothing);
    _on(StemSignals.controlCommandCompleted, _nothing);
  }

  void _on<T extends StemEvent>(Signal<T> signal, Map<String, Object?> Function(T event) details) {
    void forward(T event, SignalContext _) {
      // The name is the signal's: payload classes fall back to names that are in no catalogue.
      _send(signal.name, () => (event.occurredAt, _attributes(event), details(event)));
    }

    _subscriptions.add(signal.connect(forward, priority: _priority));
  }

  /// Numbers a signal, writes it down, and queues it. The number comes first: whatever goes wrong after, and in the
  /// code that describes the signal too (an error's `toString` is anybody's), leaves a hole that tells of it.
  void _send(String name, (DateTime, Map<String, Object?>, Map<String, Object?>) Function() describe) {
    final seq = ++_seq;
    try {
      final (at, attributes, details) = describe();
      _publisher?.add(_compose(name, at, attributes, details, seq));
    } on Object catch (error) {
      _publisher?.drop('$name cannot be written: ${error.runtimeType}');
    }
  }

  Uint8List _compose(
    String name,
    DateTime at,
    Map<String, Object?> attributes,
    Map<String, Object?> details,
    int seq,
  ) {
    final signal = <String, Object?>{
      'eventName': name,
      'occurredAt': _iso(at),
      'attributes': attributes,
      ...details,
      'emitter': emitter,
      'boot': boot,
      'seq': seq,
    };
    return utf8.encode(_wellFormed(jsonEncode(signal, toEncodable: _plain)));
  }

  /// The details of a publish signal.
  Map<String, Object?> _publish(Envelope envelope) => {'envelope': _withoutPayloads(envelope)};

  /// The details of an attempt's signal: what is known of the attempt so far, before [event] adds to it.
  Map<String, Object?> _attempt(StemEvent event, Envelope envelope, WorkerInfo worker) {
    final begins = event is TaskReceivedPayload;
    // Where the bridge came too late for `worker-init`. A later signal would bring back a worker that has shut down.
    if (begins) _workers.putIfAbsent(worker.id, () => worker);
    final delivery = _deliveries.find(envelope, worker.id, begins: begins);
    final details = <String, Object?>{
      'envelope': _withoutPayloads(envelope),
      'attempt': envelope.attempt,
      'workerId': worker.id,
      if (!begins && delivery.receivedAt != null) 'receivedAt': delivery.receivedAt,
      if (delivery.startedAt != null) 'startedAt': delivery.startedAt,
      if (event is TaskPostrunPayload && delivery.endedAt != null) 'endedAt': delivery.endedAt,
      if (event is TaskPostrunPayload && delivery.error != null) 'error': delivery.error,
    };
    delivery.learn(event);
    if (delivery.over) _deliveries.forget(delivery);
    return details;
  }

  Map<String, Object?> _alive(WorkerInfo worker) {
    _workers[worker.id] = worker;
    return _process();
  }

  Map<String, Object?> _gone(WorkerInfo worker) {
    _workers.remove(worker.id);
    return _process();
  }

  /// The details of a worker's signal: worker ids collide in containers, processes do not.
  Map<String, Object?> _process() => {'pid': pid, 'host': _host};

  Map<String, Object?> _nothing(StemEvent event) => const {};

  /// Beats for every worker of this isolate; where there is none (a producer, a Beat) for the process alone. The point
  /// is the number in it: with it the agent notices within one beat that the last signals of a burst are missing.
  void _beat() {
    final workers = _workers.isEmpty ? const <WorkerInfo?>[null] : List<WorkerInfo?>.of(_workers.values);
    for (final worker in workers) {
      final now = DateTime.now();
      _send(StemSignals.workerHeartbeatName, () => (now, _heartbeat(worker, now), _process()));
    }
  }

  Map<String, Object?> _heartbeat(WorkerInfo? worker, DateTime now) => {
    if (worker != null) 'workerId': worker.id,
    'queues': worker?.queues ?? const <String>[],
    'broadcasts': worker?.broadcasts ?? const <String>[],
    'timestamp': _iso(now),
  };
}

/// `StemEvent.attributes` without what tasks, workflows and commands compute or are given: payloads never leave.
Map<String, Object?> _attributes(StemEvent event) {
  final attributes = {...event.attributes};
  if (event is WorkflowRunPayload) {
    final metadata = {...event.metadata}..remove('result');
    attributes.remove('metadata');
    if (metadata.isNotEmpty) attributes['metadata'] = metadata;
  } else if (event is ControlCommandReceivedPayload || event is ControlCommandCompletedPayload) {
    attributes
      ..remove('payload')
      ..remove('response');
  }
  return attributes;
}

/// `Envelope.toJson` without arguments, and without the meta keys that repeat payloads.
Map<String, Object?> _withoutPayloads(Envelope envelope) {
  final json = {...envelope.toJson()}..remove('args');
  json['meta'] = {...envelope.meta}..removeWhere((key, _) => _privateMeta.contains(key));
  return json;
}

/// What is remembered of one delivery of an attempt, as the wire says it.
final class _Delivery {
  _Delivery(this.key, Envelope envelope) : _envelope = WeakReference(envelope);

  final _AttemptKey key;
  final WeakReference<Envelope> _envelope; // weak: arguments are not kept alive for an attempt whose end never comes

  String? receivedAt;
  String? startedAt;
  String? endedAt;
  String? error;

  /// Whether no signal of this delivery is to come.
  bool over = false;

  bool isOf(Envelope envelope) => identical(_envelope.target, envelope);

  void learn(StemEvent event) {
    final at = _iso(event.occurredAt);
    switch (event) {
      case TaskReceivedPayload():
        receivedAt ??= at; // Stem's SignalMiddleware says it twice
      case TaskPrerunPayload():
        startedAt ??= at;
      case TaskSuccessPayload():
        _end(at, null);
      case TaskFailurePayload():
        _end(at, event.error.toString());
      case TaskRetryPayload():
        _end(at, event.reason.toString());
      case TaskRevokedPayload():
        _end(at, event.reason);
      case TaskPostrunPayload():
        over = true;
    }
  }

  /// An attempt that never ran (revoked before, or refused for its signature) has no postrun: this is its last signal.
  void _end(String at, String? text) {
    endedAt = at;
    error = text;
    over = startedAt == null;
  }
}

typedef _AttemptKey = (String taskId, int attempt, String workerId);

/// The deliveries under way.
///
/// The same attempt may be under way twice in one worker: a broker whose lease ran out delivers it again. Their signals
/// come interleaved and name only the attempt, but every signal of one delivery carries the very same [Envelope]
/// object, so that each delivery keeps its own times. An envelope that was copied on its way belongs to the delivery
/// that is under way for longest: its times are then those of the first until that one has ended, which is
/// wrong for the second at most, and never mixes the two.
final class _Deliveries {
  /// Deliveries whose end never comes would pile up; beyond this the oldest is forgotten.
  static const _most = 10000;

  final _underWay = <_AttemptKey, List<_Delivery>>{};
  int _count = 0;

  _Delivery find(Envelope envelope, String workerId, {required bool begins}) {
    final key = (envelope.id, envelope.attempt, workerId);
    final found = _underWay.putIfAbsent(key, () => []);
    for (final delivery in found) {
      if (delivery.isOf(envelope)) return delivery;
    }
    if (!begins && found.isNotEmpty) return found.first;
    final delivery = _Delivery(key, envelope);
    found.add(delivery);
    _count += 1;
    if (_count > _most) forget(_underWay.values.first.first);
    return delivery;
  }

  void forget(_Delivery delivery) {
    final found = _underWay[delivery.key];
    if (found == null || !found.remove(delivery)) return;
    _count -= 1;
    if (found.isEmpty) _underWay.remove(delivery.key);
  }
}

/// A bounded queue, and the loop that empties it into Redis for as long as the bridge lives.
final class _Publisher {
  _Publisher(
    this._open, {
    required this.channel,
    required this.maxQueued,
    required this.maxQueuedBytes,
    required this.troubles,
  }) {
    _ended = _run();
  }

  static const _batch = 128;
  static const _batchBytes = 512 * 1024;
  static const _shortestPause = Duration(milliseconds: 250);
  static const _longestPause = Duration(seconds: 30);

  final Future<_Connection> Function() _open;
  final String channel;
  final int maxQueued;
  final int maxQueuedBytes;
  final _Troubles troubles;

  final _queue = ListQueue<Uint8List>();
  final _random = Random();
  int _queuedBytes = 0;

  /// Sent, but not known to have arrived. After a lost connection it goes first, and whole: the agent knows a repeat
  /// by its `seq`, while what is not sent again is lost.
  final _unconfirmed = <Uint8List>[];

  late final Future<void> _ended;
  _Connection? _connection;
  Completer<void>? _work;
  Completer<void>? _pause;
  bool _closing = false;
  bool _cut = false;
  int dropped = 0;

  bool get _idle => _queue.isEmpty && _unconfirmed.isEmpty;

  void add(Uint8List payload) {
    if (payload.length > maxQueuedBytes) {
      drop('a signal is larger than the queue');
      return;
    }
    _queue.add(payload);
    _queuedBytes += payload.length;
    while (_queue.length > maxQueued || _queuedBytes > maxQueuedBytes) {
      _queuedBytes -= _queue.removeFirst().length;
      drop('the queue is full');
    }
    _wake(_work);
  }

  void drop(String reason) {
    dropped += 1;
    troubles.tell('$reason ($dropped signals dropped so far)');
  }

  Future<void> close(Duration deadline) async {
    _closing = true;
    final cut = Timer(deadline, () {
      _cut = true;
      _connection?.destroy();
      _wake(_pause);
    });
    _wake(_work);
    _wake(_pause);
    // A connection that is only being made cannot be called off: it is left to its own time limit.
    await _ended.timeout(deadline + const Duration(milliseconds: 100), onTimeout: () {});
    cut.cancel();
    dropped += _queue.length + _unconfirmed.length;
    _queue.clear();
    _unconfirmed.clear();
  }

  Future<void> _run() async {
    var failures = 0;
    while (!_cut && !(_closing && _idle)) {
      try {
        final connection = _connection = await _open();
        while (!_cut && !(_closing && _idle)) {
          if (_idle) {
            await (_work = Completer<void>()).future;
            continue;
          }
          _fill();
          await connection.publish(channel, _unconfirmed);
          _unconfirmed.clear();
          failures = 0; // health is a signal that Redis took, not a connection that it accepted
        }
      } on Object catch (error) {
        if (!_cut) troubles.tell('signals wait for redis: $error');
      } finally {
        _connection?.destroy();
        _connection = null;
      }
      if (!_cut && !(_closing && _idle)) await _rest(failures++);
    }
  }

  void _fill() {
    if (_unconfirmed.isNotEmpty) return;
    var bytes = 0;
    while (_queue.isNotEmpty && _unconfirmed.length < _batch && bytes < _batchBytes) {
      final payload = _queue.removeFirst();
      _queuedBytes -= payload.length;
      bytes += payload.length;
      _unconfirmed.add(payload);
    }
  }

  /// Full jitter, never quite nothing: a fleet that lost its Redis must not come back in step.
  Future<void> _rest(int failures) {
    final ceiling = min(_longestPause.inMilliseconds, _shortestPause.inMilliseconds << min(failures, 10));
    final pause = _pause = Completer<void>();
    final timer = Timer(Duration(milliseconds: 50 + _random.nextInt(ceiling)), () => _wake(pause));
    return pause.future.whenComplete(timer.cancel);
  }

  static void _wake(Completer<void>? sleeper) {
    if (sleeper != null && !sleeper.isCompleted) sleeper.complete();
  }
}

/// A connection that can do what a publisher needs: AUTH and PUBLISH, whose replies are single lines.
///
/// It talks to the socket itself: two commands are no reason for a dependency, and here everything that waits has a
/// time limit.
final class _Connection {
  _Connection._(this._socket) {
    _socket.done.ignore(); // a failed write is told by the stream below, and must not reach the worker's zone
    _socket.listen(
      _read,
      onError: (Object error) => _fail(error),
      onDone: () => _fail(const _RedisException('redis closed the connection')),
      cancelOnError: true,
    );
  }

  static const _timeLimit = Duration(seconds: 5);
  static const _longestReply = 64 * 1024;

  static Future<_Connection> open(Uri server, TlsConfig tls) async {
    final dialling = _dial(server, tls);
    // The time limit of `connect` ends with TCP; a peer that is silent in the TLS handshake needs this one.
    final socket = await dialling.timeout(
      _timeLimit,
      onTimeout: () {
        dialling.then((straggler) => straggler.destroy()).ignore();
        throw TimeoutException('no connection', _timeLimit);
      },
    );
    final connection = _Connection._(socket);
    try {
      socket.setOption(SocketOption.tcpNoDelay, true);
      await connection._authenticate(server.userInfo);
      return connection;
    } on Object {
      connection.destroy();
      rethrow;
    }
  }

  static Future<Socket> _dial(Uri server, TlsConfig tls) async {
    final host = server.host.isEmpty ? 'localhost' : server.host;
    final port = server.hasPort ? server.port : 6379;
    if (server.scheme != 'rediss') return Socket.connect(host, port, timeout: _timeLimit);
    return SecureSocket.connect(
      host,
      port,
      context: tls.toSecurityContext(),
      onBadCertificate: tls.allowInsecure ? (_) => true : null,
      timeout: _timeLimit,
    );
  }

  final Socket _socket;
  final _line = BytesBuilder();
  final _replies = <String>[];
  int _expected = 0;
  Completer<List<String>>? _answer;
  Object? _failure;

  Future<void> publish(String channel, List<Uint8List> payloads) async {
    final command = utf8.encode('PUBLISH');
    final where = utf8.encode(channel);
    final replies = await _ask([
      for (final payload in payloads) [command, where, payload],
    ]);
    for (final reply in replies) {
      if (!reply.startsWith(':')) throw _RedisException(reply);
    }
  }

  /// Ends the connection at once; whoever waits for a reply is told.
  void destroy() {
    _fail(const _RedisException('the connection was closed'));
  }

  /// As Stem reads the URL: not decoded, and the second of two parts, else the first, is the password.
  Future<void> _authenticate(String userInfo) async {
    if (userInfo.isEmpty) return;
    final parts = userInfo.split(':');
    final password = utf8.encode(parts.length == 2 ? parts[1] : parts[0]);
    final auth = utf8.encode('AUTH');
    if (parts.length == 2 && parts[0].isNotEmpty) {
      final replies = await _ask([
        [auth, utf8.encode(parts[0]), password],
      ]);
      if (replies.single.startsWith('+')) return;
      // Stem ignores the name, so the worker may live by the password alone: then its bridge may too.
    }
    final replies = await _ask([
      [auth, password],
    ]);
    if (!replies.single.startsWith('+')) throw _RedisException(replies.single);
  }

  /// Sends commands in one write, and returns one line for each; one at a time.
  Future<List<String>> _ask(List<List<List<int>>> commands) async {
    final failure = _failure;
    if (failure != null) throw failure;
    final request = BytesBuilder(copy: false);
    for (final command in commands) {
      request.add(ascii.encode('*${command.length}\r\n'));
      for (final part in command) {
        request
          ..add(ascii.encode('\$${part.length}\r\n'))
          ..add(part)
          ..add(const [0x0d, 0x0a]);
      }
    }
    _replies.clear();
    _expected = commands.length;
    _socket.add(request.takeBytes());
    final answer = _answer = Completer<List<String>>();
    return answer.future.timeout(_timeLimit);
  }

  void _read(Uint8List bytes) {
    for (final byte in bytes) {
      if (byte == 0x0a) {
        _replies.add(utf8.decode(_line.takeBytes(), allowMalformed: true).trimRight());
      } else {
        _line.addByte(byte);
      }
    }
    final answer = _answer;
    if (answer != null && !answer.isCompleted && _replies.length >= _expected) answer.complete(List.of(_replies));
    if (_line.length > _longestReply) _fail(const _RedisException('the peer does not speak the redis protocol'));
  }

  void _fail(Object error) {
    _failure ??= error;
    _socket.destroy();
    final answer = _answer;
    if (answer != null && !answer.isCompleted) answer.completeError(_failure!);
  }
}

final class _RedisException implements Exception {
  const _RedisException(this.message);

  final String message;

  @override
  String toString() => message;
}

/// Tells of trouble once a minute at most, and never makes any.
final class _Troubles {
  _Troubles(this._tell);

  static const _every = Duration(minutes: 1);

  final void Function(String problem) _tell;
  final _since = Stopwatch();

  void tell(String problem) {
    if (_since.isRunning && _since.elapsed < _every) return;
    _since
      ..reset()
      ..start();
    try {
      _tell(problem);
    } on Object {
      // whoever listens to trouble has trouble: there is nobody left to tell
    }
  }
}

void _toStderr(String problem) => stderr.writeln('stem_signal_bridge: $problem');

final _host = Platform.localHostname;

String? _variable(String name) {
  final value = Platform.environment[name]?.trim();
  return value == null || value.isEmpty ? null : value;
}

/// Returns null for what is no Redis URL. It may hold a password, so nobody quotes it.
Uri? _server(String url) {
  final server = Uri.tryParse(url);
  return server != null && (server.scheme == 'redis' || server.scheme == 'rediss') ? server : null;
}

String _randomId() {
  final random = Random.secure();
  return [for (var index = 0; index < 8; index++) random.nextInt(256).toRadixString(16).padLeft(2, '0')].join();
}

String _iso(DateTime moment) => moment.toUtc().toIso8601String();

/// What JSON cannot say is said in words. `toJson` of an application's objects is not asked: it may be slow, or tell
/// more than it should.
Object? _plain(Object? value) => value is DateTime ? _iso(value) : value.toString();

final _escape = RegExp(r'\\(?:u(d[89a-f][0-9a-f]{2})|.)');

/// Replaces halves of surrogate pairs, as a text has that was cut within an emoji. Dart writes them as escapes, and a
/// strict reader refuses the whole signal for one.
String _wellFormed(String json) {
  if (!json.contains(r'\ud')) return json;
  return json.replaceAllMapped(_escape, (match) => match[1] == null ? match[0]! : '\ufffd');
}
